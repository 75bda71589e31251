"""Memory and operators of a call, by hand."""

import pytest
import torch
from _bench import CPU, SMALL
from torch import Tensor

from fused_loss.bench import PROVIDERS, Case, Inputs, Phase
from fused_loss.bench.footprint import footprint
from fused_loss.bench.programs import Program, Provider, Step
from fused_loss.bench.providers import from_loss

LARGE = Case("large", "test", 1024, 1000)
LOGITS = 1024 * 1000 * 4


def program_of(step: Step) -> Program:
    return Provider("p", lambda case, device: lambda phase: step).program(SMALL, Phase.FORWARD, CPU)


def test_two_buffers_at_once_count_and_two_in_turn_do_not():
    def both(inputs: Inputs) -> tuple[Tensor, ...]:
        return torch.empty(1000), torch.empty(500)

    def in_turn(inputs: Inputs) -> tuple[Tensor, ...]:
        for size in (1000, 500):
            torch.empty(size)
        return ()

    inputs = SMALL.make()
    assert footprint(program_of(both), inputs, CPU).peak_bytes == 6000
    assert footprint(program_of(in_turn), inputs, CPU).peak_bytes == 4000
    assert footprint(program_of(in_turn), inputs, CPU).operators == 2


def test_views_cost_nothing():
    viewing = program_of(lambda inputs: (inputs.regression_output.view(-1),))
    found = footprint(viewing, SMALL.make(), CPU)
    assert found.peak_bytes == 0


def test_eager_holds_three_logits_and_the_fused_loss_one():
    """log-softmax, its gradient, and the one-hot rows of nll_loss; or the gradient alone."""
    peaks = {}
    for name in ("eager", "fused-auto"):
        program = PROVIDERS[name].program(LARGE, Phase.TRAINING, CPU)
        inputs = LARGE.make()
        program(inputs)
        peaks[name] = footprint(program, inputs, CPU).peak_bytes / LOGITS
    assert peaks["eager"] == pytest.approx(3, rel=0.01)
    assert peaks["fused-auto"] == pytest.approx(1, rel=0.05)


def test_a_cpu_has_neither_launches_nor_synchronisations():
    found = footprint(PROVIDERS["eager"].program(SMALL, Phase.TRAINING, CPU), SMALL.make(), CPU)
    assert (found.launches, found.synchronisations) == (None, None)
    assert found.operators > 5


@pytest.mark.gpu
def test_on_a_gpu_launches_and_waits_are_counted():
    device = torch.device("cuda", 0)
    inputs = SMALL.make(device)

    def waiting(case: Case):
        def loss(inputs: Inputs) -> Tensor:
            total = inputs.regression_output.sum() + 0.0
            total.item()
            return total

        return loss

    program = Provider("waiting", from_loss(waiting)).program(SMALL, Phase.FORWARD, device)
    program(inputs)
    found = footprint(program, inputs, device)
    assert found.launches == 2
    assert found.synchronisations == 1
