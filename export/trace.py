"""From a module to an ONNX model, without what the exporter leaves in it."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.losses import ComposedLosses
from fused_loss.export.probe import isolated
from fused_loss.export.signature import MAX_IR_VERSION, Signature, Tensors
from fused_loss.export.state import OWN

BFLOAT16 = 16  # of onnx.TensorProto
SPEAKERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
# Whose lines are not the user's.
FOREIGN = tuple(str(Path(file).parent) for file in (torch.__file__, __file__))
FIXED = "the batch axis is not free, does forward reshape to a number of rows? "
# Rows of the traced batch: 0 and 1 are special to torch.export.
TRACED_ROWS = 3


def traced(
    module: nn.Module,
    rows: Tensors,
    signature: Signature,
    opset: int,
    outside: Callable[[Any], None] | None = None,
) -> Any:
    """The `onnx.ModelProto` of the model, without metadata; `outside` may move its weights away.

    Raises:
        OnnxExportError: The exporter fails, or gives another opset than the one asked for, or a
            type that onnxruntime cannot compute with.
        OSError: The weights cannot be written.
    """
    batch = torch.arange(TRACED_ROWS) % rows[0].shape[0]
    try:
        with quiet(*SPEAKERS), isolated(), ComposedLosses():
            program = torch.onnx.export(
                module,
                tuple(tensor[batch] for tensor in rows),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(signature.input_names),
                output_names=list(signature.outputs.values()),
                dynamic_shapes=signature.dynamic_shapes,
            )
            assert program is not None
            model = program.model
            _name_weights(model, {*signature.input_names, *signature.outputs.values()})
            if outside is not None:
                outside(model)
            proto = cleaned(program.model_proto)
    except (OnnxExportError, OSError):
        raise
    except Exception as error:
        raise OnnxExportError(_told(error)) from error
    written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if written != opset:
        raise OnnxExportError(
            f"opset {opset} was asked for and the exporter gives {written}: "
            "18 to 25 are safe, 20 is read everywhere"
        )
    return _without_bfloat16(proto)


def _name_weights(model: Any, public: set[str]) -> None:
    """Weights have the names that they have in the user's model; what else has one gives way.

    Raises:
        OnnxExportError: An input or output, `public`, has the name of a weight.
    """
    weights = model.graph.initializers
    own = {name.removeprefix(OWN): weights.pop(name) for name in [*weights] if name.startswith(OWN)}
    for name in sorted(public & own.keys()):
        raise OnnxExportError(
            f"the model has a parameter or buffer named {name!r}, and so is an input or output of "
            "the file: give other input_names or output_names"
        )
    added = [weights.pop(name) for name in [*weights]]  # by the options, and constants
    outputs = {id(value) for value in model.graph.outputs}
    between = [v for node in model.graph.all_nodes() for v in node.outputs if id(v) not in outputs]
    taken = {*public, *own}
    for value in (*added, *between):
        value.name = _free(value.name, taken)
        taken.add(value.name)
    for name, value in own.items():
        value.name = name
    weights.update({value.name: value for value in (*own.values(), *added)})


def _free(name: str | None, taken: set[str]) -> str:
    """The name, or the first one made from it that is not taken."""
    name = name or "value"
    candidates = (f"{name}.{k}" for k in count(2))
    return name if name not in taken else next(c for c in candidates if c not in taken)


def _without_bfloat16(proto: Any) -> Any:
    values = (*proto.graph.value_info, *proto.graph.output)
    if any(value.type.tensor_type.elem_type == BFLOAT16 for value in values):
        raise OnnxExportError(
            "forward computes in bfloat16, which onnxruntime cannot on a CPU: is autocast on in "
            "it, or a .bfloat16()? Export a model that computes in float32"
        )
    return proto


def cleaned(proto: Any) -> Any:
    """Without stack traces, source paths and doc strings; IR version 10 at most."""
    proto.ir_version = min(proto.ir_version, MAX_IR_VERSION)
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")
    for graph in (proto.graph, *proto.functions):
        _strip(graph)
    return proto


def _strip(graph: Any) -> None:
    """Of a graph or a function, and of the graphs inside its nodes."""
    values = [*graph.value_info]
    if hasattr(graph, "initializer"):
        values += [*graph.initializer, *graph.input, *graph.output]
    for item in (graph, *values, *graph.node):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _strip(attribute.g)
            for inner in attribute.graphs:
                _strip(inner)


def _told(error: BaseException) -> str:
    """The first cause's message, without the exporter's general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).strip() or type(error).__name__
    if "data-dependent" in reason:
        return (
            f"forward goes by the values of a tensor{_place(error)}, and a file goes one way for "
            "all values: choose between results with torch.where, or go by shapes alone"
        )
    return f"torch.onnx.export failed: {FIXED if 'static shape' in reason else ''}{reason}"


def _place(error: BaseException) -> str:
    """The last line of the user's that led to it, in brackets, where there is one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.line and not frame.filename.startswith(FOREIGN):
            where = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
            return f" ({where}: `{frame.line}`)"
    return ""


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without the exporter's notes and graphs on stderr: its error or the file says enough."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
