"""A loss made into a step of each phase."""

import pytest
import torch
from _bench import CPU, SMALL

from fused_loss.bench import Inputs, Phase
from fused_loss.bench.cases import SCALE
from fused_loss.bench.providers import eager_loss, inplace_loss
from fused_loss.bench.steps import OnCopies, Replayed, TrainingStep, copy_step, step_of

LOSS = eager_loss(SMALL)


def test_the_phases_agree_on_the_loss_and_the_scale_is_a_factor_of_the_gradients():
    inputs = SMALL.make(seed=2)
    (value,) = step_of(LOSS, SMALL, Phase.FORWARD, CPU)(inputs)
    plain, *gradients = step_of(LOSS, SMALL, Phase.TRAINING, CPU)(inputs)
    scaled, *larger = step_of(LOSS, SMALL, Phase.SCALED, CPU)(inputs)
    assert value == plain == scaled
    for gradient, other in zip(gradients, larger, strict=True):
        assert torch.equal(gradient * SCALE, other)  # a power of two: exact


def test_a_training_step_trains_on_the_loss():
    inputs = SMALL.make(seed=3)
    step = TrainingStep(SMALL, CPU, LOSS)
    step.optimizer.param_groups[0]["lr"] = 0.1
    losses = [float(step(inputs)[0]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("loss", [LOSS, None], ids=["loss", "model-alone"])
def test_a_training_step_repeats_and_changes_every_parameter(loss):
    steps = [TrainingStep(SMALL, CPU, loss) for _ in range(2)]
    before = [p.detach().clone() for p in steps[0].model.parameters()]
    inputs = SMALL.make(seed=4)
    first, second = (step(inputs)[0] for step in steps)
    assert torch.equal(first, second)
    after = [list(step.model.parameters()) for step in steps]
    for old, new, same in zip(before, *after, strict=True):
        assert not torch.equal(old, new)
        assert torch.equal(new, same)


def test_the_small_model_gives_the_form_of_the_case():
    seen: list[Inputs] = []

    def loss(inputs: Inputs) -> torch.Tensor:
        seen.append(inputs)
        return LOSS(inputs)

    TrainingStep(SMALL, CPU, loss)(SMALL.make())
    assert seen[0].regression_output.shape == SMALL.regression_shape
    assert seen[0].classification_output.shape == SMALL.logits_shape


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.TRAINING, Phase.SCALED])
def test_the_copy_moves_half_of_the_bytes_each_way(phase: Phase):
    (copied,) = copy_step(SMALL, phase, CPU)(SMALL.make())
    assert 2 * copied.numel() * copied.element_size() == SMALL.bytes_moved(phase)
    assert copied.unique().numel() > 1


def test_a_step_on_copies_leaves_the_inputs_alone():
    phase = Phase.TRAINING
    step, plain = (
        OnCopies(step_of(inplace_loss(SMALL), SMALL, phase, CPU)),
        step_of(LOSS, SMALL, phase, CPU),
    )
    for seed in (5, 6):
        inputs, before = SMALL.make(seed=seed), SMALL.make(seed=seed)
        found = step(inputs)
        for one, other in zip(found, plain(inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7 * phase.grad_output)
        assert torch.equal(inputs.classification_output, before.classification_output)
        (copy,) = (c for c in step.copies.values() if c.data_ptr() == found[2].data_ptr())
        assert not torch.equal(copy, inputs.classification_output)
        step(inputs)
    assert len(step.copies) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.TRAINING])
def test_a_replayed_step_gives_what_the_step_gives_on_each_set(phase: Phase):
    device = torch.device("cuda", 0)
    step = step_of(LOSS, SMALL, phase, device)
    replayed = Replayed(step)
    with torch.set_grad_enabled(phase is not Phase.FORWARD):
        for seed in (0, 1, 0):
            inputs = SMALL.make(device, seed)
            for ours, theirs in zip(replayed(inputs), step(inputs), strict=True):
                assert torch.equal(ours, theirs)
