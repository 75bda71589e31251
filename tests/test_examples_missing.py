from typing import Any

import missing
import pytest
import torch
from missing import MISSING, Batch

from fused_loss import backend

N, F, C = 12, 4, 3
EVERY, NONE = torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
SOME, OTHERS = torch.arange(N) % 3 > 0, torch.arange(N) % 4 > 1
LABELLED = {  # which rows have a number, and which a class
    "all": (EVERY, EVERY),
    "some": (SOME, OTHERS),
    "no class": (SOME, NONE),
    "no number": (NONE, OTHERS),
    "nothing": (NONE, NONE),
}


def batch(label: str, dtype: torch.dtype = torch.float64) -> Batch:
    random = torch.Generator().manual_seed(0)
    numbers, classes = LABELLED[label]
    x, y = torch.randn(N, F, generator=random), torch.randn(N, 1, generator=random)
    t = torch.randint(C, (N,), generator=random)
    return Batch(
        x.to(dtype),
        y.to(dtype).masked_fill(~numbers[:, None], torch.nan),
        t.masked_fill(~classes, MISSING),
    )


@pytest.mark.parametrize("name", ["eager", "reference"])
@pytest.mark.parametrize("label", LABELLED)
def test_the_two_ways_are_equal_but_for_rounding(label: str, name: str):
    model = missing.make_model(0, F, C).double()
    with backend(name):
        loss, gradient = missing.difference(model, batch(label))
    # N rows are added up, of which those without a label add 0.
    assert max(loss, gradient) <= N * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("label", LABELLED)
def test_a_row_without_a_label_gets_no_gradient(label: str):
    numbers, classes = LABELLED[label]
    x, y, t = batch(label)
    for loss in (missing.fused, missing.gathered):
        r, z = (out.detach().requires_grad_() for out in missing.make_model(0, F, C).double()(x))
        r_grad, z_grad = torch.autograd.grad(loss(r, z, y, t), (r, z))
        assert torch.equal(r_grad[:, 0] != 0, numbers)
        assert torch.equal((z_grad != 0).all(1), classes)


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch):
    model, rows = missing.make_model(0, F, C), batch("some", torch.float32)

    def filled(r: Any, z: Any, y: Any, t: Any) -> Any:  # a missing number taken for 0
        return usual(r, z, y.nan_to_num(), t)

    usual = missing.gathered
    monkeypatch.setattr(missing, "gathered", filled)
    assert min(missing.difference(model, rows)) > N * torch.finfo(torch.float32).eps


def test_scores_by_hand():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            return x[:, :1], x[:, 1:]

    x = torch.tensor([[1.0, 2, 0], [2, 0, 2], [3, 2, 0], [4, 2, 0]])
    rows = Batch(x, torch.tensor([[1.0], [2], [3], [0]]), torch.tensor([0, 1, 1, 0]))
    scores = missing.score(Fixed(), rows)
    assert (scores.error, scores.accuracy) == (2.0, 0.75)
    hit, miss = torch.tensor(2.0).sigmoid().log(), torch.tensor(-2.0).sigmoid().log()
    expected = (0.5 * 4 - 0.5 * (3 * hit + miss) / 4).item()
    assert scores.loss == pytest.approx(expected, rel=4 * torch.finfo(torch.float32).eps)


def test_standard_values_have_mean_0_and_deviation_1_over_what_is_known():
    values = torch.tensor([[1.0, 5], [torch.nan, 7], [3, torch.nan]])
    expected = torch.tensor([[-1.0, -1], [torch.nan, 1], [1, torch.nan]])
    torch.testing.assert_close(missing.standard(values), expected, equal_nan=True)
