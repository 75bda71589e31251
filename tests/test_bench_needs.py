import pytest
import torch
from _bench import CPU

from fused_loss.bench import needs

GPU = torch.device("cuda", 0)


def test_compile_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in (needs.compiler(CPU) or "")
    monkeypatch.setenv("CXX", "python3 -I")
    assert needs.compiler(CPU) is None


def test_autotuning_needs_a_gpu(monkeypatch: pytest.MonkeyPatch):
    assert "nothing to autotune" in (needs.autotuning(CPU) or "")
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda module: None)
    assert "pip install triton" in (needs.autotuning(GPU) or "")


def test_the_kernels_are_timed_on_gpus_only(monkeypatch: pytest.MonkeyPatch):
    assert "GPU only" in (needs.kernels(CPU) or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in (needs.kernels(GPU) or "")


def test_a_peer_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    reason = needs.peer("a_peer", "a-peer")
    assert reason(CPU) == "runs on a GPU only; there: pip install a-peer"
    assert reason(GPU) == "not installed: pip install a-peer"
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda module: object())
    assert reason(GPU) is None
