"""Runs the tests of the Triton backend through the emulator of PTX: `pytest -p _ptx_plugin`.

In a process of its own, since it takes Triton's compiler in place of its interpreter. Tests that
change what the kernels have as constants cannot run so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"
import _cases  # noqa: F401  (which then takes "triton" on CPU tensors for a place to be)

os.environ["TRITON_INTERPRET"] = "0"
import _ptx_calls


@pytest.fixture(autouse=True)
def _emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    if "triton-cpu" not in request.node.name:
        pytest.fail("a test that launches nothing")
    with _ptx_calls.emulated() as emulator:
        yield
        assert emulator.kernels or "empty" in request.node.name
