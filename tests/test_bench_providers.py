"""The providers: which there are, where they can run, what their steps return."""

import pytest
import torch
from _bench import CPU, SMALL

from fused_loss.bench import PROVIDERS, Phase
from fused_loss.bench.providers import select


def test_select():
    assert [p.name for p in select(None)] == list(PROVIDERS)
    assert [p.name for p in select("copy, eager,copy")] == ["copy", "eager"]
    ours = ["fused-eager", "fused-triton", "fused-triton-graph"]
    assert [p.name for p in select("fused")] == ours
    assert [p.name for p in PROVIDERS.values() if p.ours] == ours


@pytest.mark.parametrize("names", ["nobody", "eager,fus", " , "])
def test_select_refuses_what_is_not_there(names: str):
    with pytest.raises(ValueError, match="eager, eager-float32, compile"):
        select(names)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("name", ["eager", "fused-eager"])
def test_a_step_returns_the_loss_and_in_training_both_gradients(name: str, phase: Phase):
    inputs = SMALL.make()
    loss, *gradients = PROVIDERS[name].program(SMALL, phase, CPU)(inputs)
    assert loss.shape == ()
    if phase in (Phase.FORWARD, Phase.STEP):
        assert not gradients
        assert not loss.requires_grad
    else:
        outputs = inputs.regression_output, inputs.classification_output
        assert [g.shape for g in gradients] == [x.shape for x in outputs]
    assert all(x is None or x.grad is None for x in inputs)


@pytest.mark.parametrize("phase", list(Phase))
def test_the_copy_reads_and_writes_half_of_the_bytes_each(phase: Phase):
    step = PROVIDERS["copy"].program(SMALL, phase, CPU)
    (copied,) = step(SMALL.make())
    assert 2 * copied.numel() * copied.element_size() == SMALL.bytes_moved(phase)
    assert copied.unique().numel() > 1


def test_compile_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in (PROVIDERS["compile"].available(CPU) or "")
    monkeypatch.setenv("CXX", "python3 -I")
    assert PROVIDERS["compile"].available(CPU) is None


def test_triton_is_timed_on_gpus_only(monkeypatch: pytest.MonkeyPatch):
    available = PROVIDERS["fused-triton"].available
    assert "GPU only" in (available(CPU) or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset it" in (available(torch.device("cuda", 0)) or "")
