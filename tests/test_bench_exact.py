"""The float64 reference of the loss, by hand and against PyTorch."""

import math

import pytest
import torch
from _bench import CPU, SMALL
from torch import Tensor

from fused_loss.bench import PROVIDERS, Case, Inputs, Phase, exact
from fused_loss.bench.kinds import LOSS

CASES = [
    SMALL,
    Case("weights", "test", 12, 5, (2, 3), class_weight=True, label_smoothing=0.2, ignored=0.5),
    Case("dense", "test", 3, 4, (2,), (2, 3), ignored=0.25, class_weight=True),
    Case("soft", "test", 7, 4, (), soft_targets=True, class_weight=True, label_smoothing=0.1),
    Case("half", "test", 40, 300, (), (), "bfloat16", ignored=0.1),
]


def outputs_of(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    return PROVIDERS["eager"].program(case, Phase.TRAINING, CPU)(inputs)


def verdict(
    case: Case, inputs: Inputs, outputs: tuple[Tensor, ...], of_eager: dict | None = None
) -> str | None:
    found = LOSS.verdict(case, Phase.TRAINING, inputs, outputs, of_eager or {})
    return found[2]


def test_the_reference_by_hand():
    # r - y = 2 and z = (0, 0): mse 4, d 4; ce ln 2, d (-1/2, 1/2); each times 1/2
    case = Case("hand", "test", 1, 2, (), (), "float64", "float64")
    r, z, y = (torch.tensor(x, dtype=torch.float64) for x in ([3.0], [[0.0, 0.0]], [1.0]))
    inputs = Inputs(r, z, y, torch.tensor([0]), None)
    right = (
        torch.tensor(2 + math.log(2) / 2, dtype=torch.float64),
        torch.tensor([2.0], dtype=torch.float64),
        torch.tensor([[-0.25, 0.25]], dtype=torch.float64),
    )
    assert verdict(case, inputs, right) is None
    found = exact.errors(case, Phase.TRAINING, inputs, right)
    assert found["regression gradient"] == found["classification gradient"] == (0.0, 0.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_reference_in_blocks_is_pytorch_in_float64(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "BLOCK_ELEMENTS", 16)
    r, z, y, t, weight = case.make(seed=5)
    widened = Inputs(
        r.detach().double().requires_grad_(),
        z.detach().double().requires_grad_(),
        y.double(),
        t.double() if case.soft_targets else t,
        None if weight is None else weight.double(),
    )
    assert verdict(case, widened, outputs_of(case, widened)) is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eager_is_right(case: Case):
    inputs = case.make(seed=6)
    of_eager = LOSS.eager_errors(case, Phase.TRAINING, inputs, CPU)
    assert verdict(case, inputs, outputs_of(case, inputs), of_eager) is None


def _scaled(outputs: list[Tensor], index: int) -> None:
    outputs[index] = outputs[index] * 1.01


def _one_element(outputs: list[Tensor], index: int) -> None:
    outputs[index] = outputs[index].clone()
    outputs[index].view(-1)[-1] += 0.01 * outputs[index].abs().max()


def _not_a_number(outputs: list[Tensor], index: int) -> None:
    outputs[index] = outputs[index].clone()
    outputs[index].view(-1)[0] = torch.nan


@pytest.mark.parametrize("index", range(3), ids=exact.OUTPUTS)
@pytest.mark.parametrize("spoil", [_scaled, _one_element, _not_a_number])
def test_what_is_wrong_is_named(spoil, index: int):
    inputs = SMALL.make(seed=7)
    outputs = list(outputs_of(SMALL, inputs))
    spoil(outputs, index)
    of_eager = LOSS.eager_errors(SMALL, Phase.TRAINING, inputs, CPU)
    complaint = verdict(SMALL, inputs, tuple(outputs), of_eager)
    assert (complaint or "").startswith(exact.OUTPUTS[index])


def test_outputs_of_another_form_are_refused():
    inputs = SMALL.make()
    loss, r, z = outputs_of(SMALL, inputs)
    with pytest.raises(ValueError, match="1 or 3"):
        exact.errors(SMALL, Phase.TRAINING, inputs, (loss, r))
    with pytest.raises(ValueError, match="0-d"):
        exact.errors(SMALL, Phase.TRAINING, inputs, (loss[None], r, z))
    with pytest.raises(ValueError, match="classification gradient must have shape"):
        exact.errors(SMALL, Phase.TRAINING, inputs, (loss, r, z.double()))
