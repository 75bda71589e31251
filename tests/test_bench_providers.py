"""The providers: which there are, where they can run, what their steps return."""

import pytest
from _bench import CPU, SMALL

from fused_loss.bench import PROVIDERS, Phase
from fused_loss.bench.cases import LOSS_PHASES


def test_ours_are_named_so():
    ours = ["fused-auto", "fused-auto-inplace", "fused-triton", "fused-triton-graph"]
    assert [p.name for p in PROVIDERS.values() if p.ours] == ours


@pytest.mark.parametrize("phase", list(LOSS_PHASES))
@pytest.mark.parametrize("name", ["eager", "fused-auto"])
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


@pytest.mark.parametrize("phase", list(LOSS_PHASES))
def test_the_copy_reads_and_writes_half_of_the_bytes_each(phase: Phase):
    step = PROVIDERS["copy"].program(SMALL, phase, CPU)
    (copied,) = step(SMALL.make())
    assert 2 * copied.numel() * copied.element_size() == SMALL.bytes_moved(phase)
    assert copied.unique().numel() > 1
