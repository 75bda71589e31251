import pytest
import torch
from _bench import CPU, SMALL

from fused_loss.bench import Phase, Provider
from fused_loss.bench.cases import LOSS_PHASES
from fused_loss.bench.programs import select

KNOWN = ("eager", "eager-float32", "compile", "fused-auto", "fused-triton", "copy")


def test_select():
    assert select(None, KNOWN) == list(KNOWN)
    assert select("copy, eager,copy", KNOWN) == ["copy", "eager"]
    assert select("fused", KNOWN) == ["fused-auto", "fused-triton"]


@pytest.mark.parametrize("names", ["nobody", "eager,fus", " , "])
def test_select_refuses_what_is_not_there(names: str):
    with pytest.raises(ValueError, match="eager, eager-float32, compile"):
        select(names, KNOWN)


@pytest.mark.parametrize("phase", list(LOSS_PHASES))
def test_gradients_are_kept_where_a_backward_pass_follows(phase: Phase):
    seen = []
    provider = Provider("p", lambda case, device: lambda phase: lambda inputs: seen.append(1) or ())
    program = provider.program(SMALL, phase, CPU)
    with program.context():
        assert torch.is_grad_enabled() == phase.gradients == (phase is not Phase.FORWARD)
    assert program(SMALL.make()) == ()
    assert seen
