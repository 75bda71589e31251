import pytest
import torch
from _bench import CPU, SMALL

from fused_loss.bench import PROVIDERS, Phase
from fused_loss.bench.kinds import INFERENCE, LOSS, Kind, kind_of
from fused_loss.bench.models import ModelCase
from fused_loss.bench.runtimes import RUNTIMES

INPUTS = SMALL.make(seed=1)


def test_a_loss_has_the_losses_providers():
    assert kind_of(SMALL) is LOSS
    assert LOSS.providers is PROVIDERS


def test_a_model_has_the_runtimes_on_the_cpu_alone():
    kind = kind_of(ModelCase("mlp-256", 1))
    assert kind is INFERENCE
    assert (kind.providers, kind.on) == (RUNTIMES, "cpu")


def test_the_verdict_has_errors_and_what_they_may_be():
    of_eager = LOSS.eager_errors(SMALL, Phase.TRAINING, INPUTS, CPU)
    assert tuple(of_eager) == LOSS.outputs
    outputs = PROVIDERS["eager"].program(SMALL, Phase.TRAINING, CPU)(INPUTS)
    found, allowed, complaint = LOSS.verdict(SMALL, Phase.TRAINING, INPUTS, outputs, of_eager)
    assert found == of_eager
    assert tuple(allowed) == LOSS.outputs
    assert complaint is None
    found, allowed, complaint = LOSS.verdict(
        SMALL, Phase.FORWARD, INPUTS, (outputs[0] * 1.01,), of_eager
    )
    assert tuple(found) == tuple(allowed) == ("loss",)
    assert (complaint or "").startswith("loss: norm error")


def test_where_eager_is_out_of_memory_it_allows_nothing():
    def exhausted(*args: object) -> dict:
        raise torch.OutOfMemoryError

    kind = Kind("loss", PROVIDERS, LOSS.outputs, exhausted)
    assert kind.eager_errors(SMALL, Phase.TRAINING, INPUTS, CPU) == {}


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.TRAINING])
def test_eager_is_the_measure_of_itself(phase: Phase):
    of_eager = LOSS.eager_errors(SMALL, phase, INPUTS, CPU)
    assert all(0 <= value < 1e-5 for error in of_eager.values() for value in error)
