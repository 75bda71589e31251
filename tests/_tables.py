"""Launch tables so small that little tensors take every path through the kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from fused_loss.kernels import triton_grid, triton_plan, triton_scaling, triton_table

READERS = (triton_table, triton_plan, triton_scaling)
RECALLED = (
    triton_table.tile, triton_table.slices, triton_plan.recall, triton_scaling.recall,
)  # fmt: skip


@contextmanager
def table(numbers: Mapping[str, Any], processors: int) -> Iterator[None]:
    """The launch table with these numbers, for a device of so many multiprocessors.

    On a GPU too they are legal, if slow.
    """
    patches = [
        *(
            mock.patch.object(module, name, value)
            for module in READERS
            for name, value in numbers.items()
            if hasattr(module, name)
        ),
        *(
            mock.patch.object(module, "processors", return_value=processors)
            for module in (triton_grid, triton_plan)
        ),
    ]
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.callback(forget)
        forget()
        yield


def forget() -> None:
    """What was worked out with the launch table as it was."""
    for found in RECALLED:
        found.cache_clear()
