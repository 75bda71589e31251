"""A file opened with onnxruntime, once its bytes are known to be those that were written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fused_loss.export.errors import OnnxLoadError, require
from fused_loss.export.seal import KEY, is_intact

FATAL = 4  # of onnxruntime's log levels: what goes wrong is raised, not printed


def open_session(
    path: Path,
    *,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    level: str | None = None,
) -> Any:
    """An `InferenceSession` that prints nothing; `level` is the optimisation level's name.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: onnxruntime cannot load the file, or it is not what it was when written.
        MissingDependencyError: onnxruntime is not installed.
        ValueError: A number of threads below 1, or a provider that onnxruntime does not have.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    onnxruntime = require("onnxruntime")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    if level is not None:
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
    chosen = list(providers) if providers is not None else ["CPUExecutionProvider"]
    available = onnxruntime.get_available_providers()
    if not set(chosen) <= set(available):  # onnxruntime would warn and use the CPU
        raise ValueError(f"providers must be some of {available}, got {chosen}")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:
        reason = str(error).replace(str(path), path.name)
        raise OnnxLoadError(f"onnxruntime cannot load {path.name}: {reason}") from error
    if KEY in session.get_modelmeta().custom_metadata_map and not is_intact(path.read_bytes()):
        raise OnnxLoadError(
            f"{path.name} is not what was exported: its sha256 is not the one that it records. "
            f"Export it again, or take {KEY} out of its metadata if it was changed on purpose"
        )
    return session
