"""Why a provider cannot run here, in words that say what to install, or None where it can."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable

import torch


def nothing(device: torch.device) -> None:
    """It runs anywhere."""


def compiler(device: torch.device) -> str | None:
    """What `torch.compile` lacks: a C++ compiler, or Triton on a GPU."""
    if device.type == "cuda":
        return None if _is_there("triton") else "torch.compile needs Triton: pip install triton"
    default = "clang++" if sys.platform == "darwin" else "g++"
    found = os.environ.get("CXX", default)
    if shutil.which(found.split()[0]):
        return None
    return f"torch.compile needs a C++ compiler and finds no {found}: install it, or set CXX"


def autotuning(device: torch.device) -> str | None:
    """The same, where there is anything to autotune."""
    if device.type != "cuda":
        return "there is nothing to autotune on a CPU"
    return compiler(device)


def kernels(device: torch.device) -> str | None:
    """What this package's Triton kernels lack."""
    if device.type != "cuda":
        return (
            "the Triton kernels are timed on a GPU only: their interpreter proves values, not speed"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 runs the Triton kernels in Python: unset it"
    return None if _is_there("triton") else "needs Triton: pip install 'fused-loss[triton]'"


def export(device: torch.device) -> str | None:
    """What exporting to ONNX and running the file lacks."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not _is_there(name)]
    return f"needs {', '.join(missing)}: pip install 'fused-loss[export]'" if missing else None


def peer(module: str, package: str) -> Callable[[torch.device], str | None]:
    """What a peer lacks that runs on a GPU and comes as a package of its own."""

    def reason(device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"runs on a GPU only; there: pip install {package}"
        return None if _is_there(module) else f"not installed: pip install {package}"

    return reason


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
