"""A file opened with onnxruntime, once its bytes are known to be those that were written."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fused_loss.export.admission import Admitted, admitted
from fused_loss.export.errors import OnnxLoadError, require

FATAL = 4  # of onnxruntime's log levels: what goes wrong is raised, not printed
CPU = "CPUExecutionProvider"
GPU = {"CUDAExecutionProvider", "TensorrtExecutionProvider"}
GPU_BUILD = "install onnxruntime-gpu in the place of onnxruntime, which is built for the CPU"

# Those of onnxruntime 1.32 and before end the whole process on an empty batch.
FATAL_ON_NOTHING = {"LSTM", "GRU"}

Provider: TypeAlias = "str | tuple[str, dict[str, Any]]"  # a name, and options for it


def open_session(path: Path, *, level: str | None = None) -> Any:
    """An `InferenceSession` on one thread of the CPU; `level` is the optimisation level's name.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: The file is not admitted (see `admission`), or onnxruntime cannot load it.
        MissingDependencyError: onnxruntime is not installed.
    """
    return started(admitted(path), path.name, level=level)


def started(
    file: Admitted,
    name: str,
    *,
    threads: int = 1,
    providers: Sequence[Provider] | None = None,
    spinning: bool = True,
    level: str | None = None,
) -> Any:
    """An `InferenceSession` that prints nothing; errors call the file `name`.

    A provider that does not start is a warning that says what is used instead; without the CPU
    among `providers`, what they cannot run is an error.

    Raises:
        OnnxLoadError: onnxruntime cannot load the file.
        MissingDependencyError: onnxruntime is not installed.
        ValueError: A number of threads below 1, or a provider that onnxruntime does not have.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    onnxruntime = require("onnxruntime")
    real = file.path
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if level is not None:
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
    chosen = [CPU] if providers is None else list(providers)
    names = [provider if isinstance(provider, str) else provider[0] for provider in chosen]
    available = onnxruntime.get_available_providers()
    if not names or not set(names) <= set(available):  # onnxruntime would warn and use the CPU
        mend = f": {GPU_BUILD}" if GPU & {*names} - {*available} else ""
        raise ValueError(f"providers must be some of {available}, got {names}{mend}")
    if CPU not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(real), options, providers=chosen)
    except Exception as error:
        reason = str(error).replace(str(real), name).replace(str(real.parent), "its folder")
        raise OnnxLoadError(f"onnxruntime cannot load {name}: {reason}") from error
    used = session.get_providers()
    if not set(names) <= set(used):
        idle = ", ".join(each for each in names if each not in used)
        warnings.warn(
            f"{idle} does not start here: {name} runs on {', '.join(used)}",
            RuntimeWarning,
            stacklevel=3,
        )
    return NeverEmpty(session) if FATAL_ON_NOTHING & file.operators else session


class EmptyBatchError(ValueError):
    """An empty batch for a model that onnxruntime cannot run on one."""


class NeverEmpty:
    """A session that is not run on an empty batch, where that would end the process."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> Any:
        """As the session's.

        Raises:
            EmptyBatchError: An input has no row.
        """
        if any(array.shape[:1] == (0,) for array in feeds.values()):
            raise EmptyBatchError(
                "not run: onnxruntime ends the process on an empty batch of an LSTM or a GRU"
            )
        return self._session.run(names, feeds)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the session's."""
        return getattr(self._session, name)
