"""Where a result was measured: hardware, operating system, versions, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fused-loss", "torch", "triton", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """All that a reader needs to repeat a measurement, in JSON's types."""
    return {
        "device": _gpu(device) if device.type == "cuda" else _cpu(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "threads": {
            "torch": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "commit": commit(),
    }


def _cpu() -> dict[str, Any]:
    vectors = torch.backends.cpu.get_cpu_capability()  # what PyTorch's operators are made of here
    return {"type": "cpu", "name": _cpu_name(), "cores": os.cpu_count(), "vectors": vectors}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = [line.partition(":") for line in lines]
    names = [value.strip() for key, _, value in fields if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "host": _cpu(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" where files differ; None outside a checkout."""
    here = str(Path(__file__).resolve().parent)
    head = _output("git", "-C", here, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("-dirty" if _output("git", "-C", here, "status", "--porcelain") else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else None
