"""What is launched again is what Triton would launch: the same machine code and arguments.

Processes without the interpreter launch for a GPU that is not there: see `_relaunch`, and
`_launcher` for what reaches the driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_loss.kernels import triton_direct, triton_reduce
from fused_loss.kernels.triton_grid import Launch

# The launches of a step, and for how many of them Triton is asked.
STEPS = {
    "first": (2, 2),
    "again": (2, 0),
    "another alpha": (2, 0),
    "another offset": (2, 1),
    "that offset again": (2, 0),
    "aligned again": (2, 0),
    "another dtype": (2, 2),
    "another length": (2, 2),
    "many": (3, 3),
    "many again": (3, 0),
    "a normalizer": (2, 1),
    "another normalizer": (2, 0),
    "none": (2, 2),
    "none again": (2, 0),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers have compiled."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def steps(cache: Path) -> dict[str, Any]:
    return answers("_relaunch.py", cache)


def answers(worker: str, cache: Path, **variables: str) -> dict[str, Any]:
    """What a worker printed last."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, Path(__file__).with_name(worker)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", STEPS)
def test_a_launch_is_what_triton_would_launch(name: str, steps: dict[str, Any]) -> None:
    found = steps[name]
    assert not found["wrong"]
    assert (found["launches"], found["asked"]) == STEPS[name]


def test_a_wrong_launch_is_seen(steps: dict[str, Any]) -> None:
    """Logits off their alignment, started with the code for aligned ones."""
    assert not steps["blind"]["wrong"]
    assert any(text.startswith("reduce_kernel") for text in steps["blind to an offset"]["wrong"])


def test_what_reaches_the_driver_is_what_the_machine_code_takes(
    cache: Path, tmp_path: Path
) -> None:
    """Through Triton's own launcher: grid, stream, shared memory and each parameter's bytes."""
    library = tmp_path / "libcuda.so.1"
    source = Path(__file__).with_name("_driver.c")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run(["cc", *options, "-o", library, source], check=True)
    found = answers("_launcher.py", cache, TRITON_LIBCUDA_PATH=str(tmp_path))
    wrong = found.pop("mixed up")["wrong"]
    assert [text.partition(":")[0] for text in wrong] == [
        "reduce_kernel.w_reg",
        "reduce_kernel.w_cls",
    ]
    asked = {name: (step["launches"], step["asked"]) for name, step in found.items()}
    assert asked == {"first": (2, 2), "again": (2, 0), "a normalizer": (2, 2), "none": (2, 2)}
    assert not any(step["wrong"] for step in found.values())


def test_alignment_is_told_for_each_pointer() -> None:
    x = torch.zeros(16)
    assert x.data_ptr() % 16 == 0
    pointers = [x, None, x[1:], x[4:]]
    keys = {
        triton_direct.aligned({"a_ptr": a, "b_ptr": b, "n": 3, "ignored": x[1:]})
        for a in pointers
        for b in pointers
    }
    assert len(keys) == 4  # of each: is it a tensor whose address 16 divides?


def test_pointers_come_first_in_every_kernel() -> None:
    """`aligned` looks no further than the first argument that is none."""
    from fused_loss.kernels import triton_counts, triton_per_sample, triton_scale

    for kernel in (
        triton_reduce.reduce_kernel,
        triton_per_sample.per_sample_kernel,
        triton_counts.count_kernel,
        triton_scale.scale_kernel,
    ):
        named = [name.endswith("_ptr") for name in kernel.arg_names]
        assert named == sorted(named, reverse=True)


@pytest.mark.parametrize("setting", ["interpreter", "hooks", "AMD"])
def test_triton_is_asked_where_it_knows_better(setting, monkeypatch) -> None:
    calls = []

    class Kernel:
        """As far as the launcher looks at one."""

        pre_run_hooks = (print,) if setting == "hooks" else ()

        arg_names = ()

        def __getitem__(self, grid):
            return lambda **arguments: calls.append(grid)

    class Compiled:
        """Knows no better than to fail."""

        def __getitem__(self, grid):
            raise AssertionError

    if setting != "interpreter":
        monkeypatch.setattr(triton_direct.triton, "JITFunction", Kernel)
    if setting == "AMD":
        monkeypatch.setattr(triton_direct, "CUDA", False)
    call = Launch(Kernel(), 3, torch.device("cpu"), 4)
    call.code[triton_direct.aligned({})] = Compiled()
    for _ in range(2):
        triton_direct.start(call, {})
    assert calls == [(3,), (3,)]
