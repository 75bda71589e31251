"""One run of a model on the example: which of the tensors that it returns is what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fused_loss.export.deployed import Before
from fused_loss.export.errors import ModelError, OnnxExportError
from fused_loss.export.heads import Layout, layout_of, picked, tensors_of
from fused_loss.export.signature import REGRESSION, Signature, Tensors


@contextmanager
def isolated() -> Iterator[None]:
    """No gradient, no autocast, the CPU by default, and the caller's random state kept."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


def probed(
    core: nn.Module, before: Before, example: Tensors, roles: dict[str, str], signature: Signature
) -> tuple[Layout, Tensor | None]:
    """The role of each tensor that the model returns, and the regression output.

    Raises:
        ModelError: `forward` fails.
        OnnxExportError: It does not return the two heads, or the example is one sample.
    """
    try:
        outputs = _outputs(core, before, example)
    except Exception as error:
        given = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in example)
        mend = _mend(core, before, example)
        raise ModelError(f"the model itself fails on {given}: {error}{mend}") from error
    layout = layout_of(outputs, roles, signature.output_names)
    found = dict(zip(layout, picked(outputs, layout), strict=True))
    rows = example[0].shape[0]
    kept = any(output.shape[:1] == (rows,) for output in found.values())
    if mend := "" if kept else _mend(core, before, example):
        shapes = ", ".join(f"{role} {tuple(output.shape)}" for role, output in found.items())
        raise OnnxExportError(f"of {rows} rows forward makes {shapes}{mend}")
    return layout, found.get(REGRESSION)


def _outputs(core: nn.Module, before: Before, inputs: Tensors) -> Any:
    with isolated():
        return core(*before(*(x.clone() for x in inputs)))


def _mend(core: nn.Module, before: Before, example: Tensors) -> str:
    """What to say where the model takes the example as one sample."""
    try:
        outputs = _outputs(core, before, tuple(x[None] for x in example))
        rows = {output.shape[0] for output in tensors_of(outputs).values() if output.dim()}
    except Exception:
        return ""
    return "; is example one sample? It needs a batch axis: x[None]" if rows == {1} else ""
