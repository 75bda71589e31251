"""Which backend runs; what the environment says is asked of a Python of its own."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from _asserts import launches
from _public import batch, device_of

import fused_loss
from fused_loss import combined_loss, kernels
from fused_loss.kernels import dispatch
from fused_loss.spec import LossSpec, LossTensors

NAMES = ("auto", "triton", "eager", "reference")
FOUR = "'auto', 'triton', 'eager', 'reference'"


def test_backend_nests_and_restores():
    assert kernels.asked() == "auto"
    with fused_loss.backend("eager"):
        with fused_loss.backend("reference"):
            assert kernels.asked() == "reference"
            with fused_loss.backend("auto"):
                assert kernels.asked() == "auto"
        assert kernels.asked() == "eager"
    assert kernels.asked() == "auto"


def test_an_exception_restores_too():
    with pytest.raises(ArithmeticError), fused_loss.backend("eager"):
        raise ArithmeticError
    assert kernels.asked() == "auto"


def test_backend_decorates():
    @fused_loss.backend("reference")
    def inside() -> str:
        return kernels.asked()

    assert [inside(), kernels.asked(), inside()] == ["reference", "auto", "reference"]


@pytest.mark.parametrize("name", ["cuda", "Triton", "", None, 3])
def test_an_unknown_name_lists_the_four(name: Any):
    with (
        pytest.raises(ValueError, match=f"backend must be one of {FOUR}, got {name!r}"),
        fused_loss.backend(name),
    ):
        pass
    assert kernels.asked() == "auto"


def test_the_choice_is_the_thread_s_own():
    seen: list[str] = []
    chosen, looked = threading.Event(), threading.Event()

    def other() -> None:
        seen.append(kernels.asked())
        with fused_loss.backend("reference"):
            chosen.set()
            looked.wait(10)
            seen.append(kernels.asked())

    with fused_loss.backend("eager"):
        thread = threading.Thread(target=other)
        thread.start()
        chosen.wait(10)
        seen.append(kernels.asked())
        looked.set()
        thread.join()
    assert seen == ["auto", "eager", "reference"]


@pytest.mark.parametrize("name", NAMES)
def test_the_backend_asked_for_is_the_one_that_runs(name: str, monkeypatch: pytest.MonkeyPatch):
    ran = []
    for module in (dispatch.eager, dispatch.reference, dispatch.native):

        def noted(*args: Any, module: Any = module, forward: Any = module.forward) -> Any:
            ran.append(module.__name__.rpartition(".")[2])
            return forward(*args)

        monkeypatch.setattr(module, "forward", noted)
    with fused_loss.backend(name), launches() as log:
        combined_loss(*batch(device=device_of(name)), ignore_index=-1)
    ran += ["triton"] * bool(log.kernels)
    assert ran == ["native" if name == "auto" else name]


def test_auto_on_the_cpu_whatever_is_proven(monkeypatch: pytest.MonkeyPatch):
    tensors = LossTensors(*batch())
    for proven in (False, True):
        monkeypatch.setattr(dispatch, "TRITON_PROVEN_ON_HARDWARE", proven)
        assert kernels.resolve(LossSpec(), tensors) == "native"
        assert kernels.resolve(LossSpec(inplace_gradient=True), tensors) == "eager"


def test_triton_has_no_kernel_for_another_device():
    tensors = LossTensors(*batch(device="meta"))
    with fused_loss.backend("triton"), pytest.raises(NotImplementedError, match="tensors on meta"):
        kernels.resolve(LossSpec(), tensors)


@pytest.mark.gpu
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    inputs = batch(device="cuda")
    for proven in (False, True):
        monkeypatch.setattr(dispatch, "TRITON_PROVEN_ON_HARDWARE", proven)
        with launches() as log:
            combined_loss(*inputs)
        assert bool(log.kernels) is proven
    with launches() as log:
        monkeypatch.delattr(kernels, "triton_launch")  # as if it could not be imported
        monkeypatch.setitem(sys.modules, "fused_loss.kernels.triton_launch", None)
        combined_loss(*inputs)
    assert not log.kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_waits_where_a_factor_is_sure_to_come(reduction: str, dtype: torch.dtype):
    r, z, y, t = batch()
    for r_dtype, z_dtype in ((dtype, torch.float32), (torch.float32, dtype)):
        tensors = LossTensors(r.to(r_dtype), z.to(z_dtype), y, t)
        expected = reduction == "none" or dtype == torch.float16
        assert kernels.gradient_waits(LossSpec(reduction), tensors) is expected


# --- a Python of its own --------------------------------------------------------------------------

INPUTS = """
    import json, os, sys
    import torch, fused_loss
    from fused_loss import combined_loss, kernels
    said = {"loaded": sorted({"triton", "onnx", "onnxruntime", "onnxscript"} & set(sys.modules))}
    r, z = torch.tensor([[0.5], [2.0]]), torch.tensor([[0.25, -1.0], [0.5, 0.0]])
    r.requires_grad_(), z.requires_grad_()
    y, t = torch.zeros(2, 1), torch.tensor([0, 1])

    def attempt(name):
        r.grad = z.grad = None
        try:
            with fused_loss.backend(name):
                loss = combined_loss(r, z, y, t)
            loss.backward()
            return [loss.item(), *r.grad.flatten().tolist(), *z.grad.flatten().tolist()]
        except Exception as error:
            return f"{type(error).__name__}: {error}"
"""


def python(script: str, **environment: str) -> dict[str, Any]:
    """Run a script as a user would, outside pytest's environment; the JSON that it prints."""
    unset = ("TRITON_INTERPRET", "FUSED_LOSS_BACKEND", "FUSED_LOSS_DEBUG")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    script = textwrap.dedent(INPUTS) + textwrap.dedent(script) + "\nprint(json.dumps(said))\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_plain_python():
    said = python("""
        said["asked"] = kernels.asked()
        said |= {name: attempt(name) for name in ("eager", "reference", "auto")}
        said["loaded by a loss"] = "triton" in sys.modules
        said["triton"] = attempt("triton")
        os.environ["FUSED_LOSS_BACKEND"] = "reference"  # read once, at import
        said["asked later"] = kernels.asked()
    """)
    assert said["loaded"] == []
    assert said["asked"] == said["asked later"] == "auto"
    assert said["loaded by a loss"] is False
    for name in ("eager", "auto"):
        torch.testing.assert_close(torch.tensor(said[name]), torch.tensor(said["reference"]))
    assert said["triton"].startswith("RuntimeError: ")
    assert "set the environment variable TRITON_INTERPRET=1" in said["triton"]


def test_a_python_with_the_interpreter():
    said = python(
        """
        said |= {name: attempt(name) for name in ("triton", "reference")}
        said["launcher"] = "fused_loss.kernels.triton_launch" in sys.modules
        """,
        TRITON_INTERPRET="1",
    )
    assert said["loaded"] == []
    assert said["launcher"]
    torch.testing.assert_close(*(torch.tensor(said[name]) for name in ("triton", "reference")))


def test_a_python_with_a_backend_and_debug_in_its_environment():
    said = python(
        """
        from fused_loss import checks
        said["asked"], said["debug"] = kernels.asked(), checks.DEBUG
        with fused_loss.backend("eager"):
            said["outranked"] = kernels.asked()
        t += 1
        said["illegal"] = attempt("reference")
        """,
        FUSED_LOSS_BACKEND="reference",
        FUSED_LOSS_DEBUG="1",
    )
    assert (said["asked"], said["debug"], said["outranked"]) == ("reference", True, "eager")
    assert said["illegal"].startswith("IndexError: classification_targets holds the class index 2")


def test_a_python_without_triton():
    script = """
        said["asked"] = kernels.asked()
        sys.modules["triton"] = None  # as if it were not installed
        said |= {name: attempt(name) for name in ("auto", "reference", "triton")}
        try:
            os.environ["FUSED_LOSS_BACKEND"] = "cuda"
            for name in [name for name in sys.modules if name.startswith("fused_loss")]:
                del sys.modules[name]
            import fused_loss
        except ValueError as error:
            said["unknown"] = str(error)
    """
    said = python(script, FUSED_LOSS_BACKEND="")  # set to nothing: as if it were not set
    assert said["asked"] == "auto"
    torch.testing.assert_close(*(torch.tensor(said[name]) for name in ("auto", "reference")))
    assert said["triton"].startswith("ModuleNotFoundError: ")
    assert "pip install 'fused-loss[triton]'" in said["triton"]
    assert said["unknown"] == f"FUSED_LOSS_BACKEND must be one of {FOUR}, got 'cuda'"
