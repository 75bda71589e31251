"""A file opened with onnxruntime, once its bytes are known to be those that were written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fused_loss.export.admission import admitted
from fused_loss.export.errors import OnnxLoadError, require

FATAL = 4  # of onnxruntime's log levels: what goes wrong is raised, not printed


def open_session(
    path: Path,
    *,
    threads: int = 1,
    providers: Sequence[str] | None = None,
    level: str | None = None,
    sha256: str | None = None,
) -> Any:
    """An `InferenceSession` that prints nothing; `level` is the optimisation level's name.

    `sha256` is the digest of the only file that is wanted; None takes any.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: The file is not admitted (see `admission`), or onnxruntime cannot load it.
        MissingDependencyError: onnxruntime is not installed.
        ValueError: A number of threads below 1, or a provider that onnxruntime does not have.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    onnxruntime = require("onnxruntime")
    real = admitted(path, sha256).path
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
        return onnxruntime.InferenceSession(str(real), options, providers=chosen)
    except Exception as error:
        reason = str(error).replace(str(real), path.name).replace(str(real.parent), "its folder")
        raise OnnxLoadError(f"onnxruntime cannot load {path.name}: {reason}") from error
