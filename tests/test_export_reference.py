import numpy as np
import pytest
import torch
from _export import Noisy, TwoInputs, mlp, rows
from torch import nn

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.reference import Reference
from fused_loss.export.signature import Signature


class Two(nn.Module):
    """Gives `outputs(x)`."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        return self.outputs(x)


def float64(model, *inputs):
    return [y.numpy() for y in model.eval().double().requires_grad_(False)(*inputs)]


def test_eager_is_the_model_and_exact_is_the_model_in_float64():
    reference = Reference(mlp().train(), (rows(),))
    with torch.no_grad():
        expected = mlp().eval()(rows())
    eager, exact = reference.eager((rows(),)), reference.exact((rows(),))
    for found, wanted in zip(eager, expected, strict=True):
        assert found.dtype == np.float32
        assert np.array_equal(found, wanted.numpy())
    for found, wanted in zip(exact, float64(mlp(), rows().double()), strict=True):
        assert found.dtype == np.float64
        assert np.array_equal(found, wanted)


def test_integers_stay_integers():
    inputs = (rows(8), torch.arange(16).reshape(8, 2) % 5)
    found = Reference(TwoInputs(), inputs, Signature(("numbers", "index"))).exact(inputs)
    assert [head.dtype for head in found] == [np.float64] * 2


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x: (x.float().exp(), x.to(torch.float32) / 3),
        lambda x: (
            x.half().exp().bfloat16().float(),
            torch.zeros(x.shape, dtype=torch.float32) + x / 3,
        ),
        lambda x: (x.clone().exp_(), x.div_(torch.full_like(x, 3.0))),
    ],
)
def test_exact_is_in_float64_whatever_dtype_forward_names(outputs):
    x = rows(5)
    regression, classification = Reference(Two(outputs), (x,)).exact((x,))
    assert np.array_equal(regression, x.double().exp().numpy())
    assert np.array_equal(classification, x.double().numpy() / 3)


def test_a_run_leaves_the_inputs_and_the_random_state_as_they_were():
    x, state = rows(5), torch.get_rng_state()
    reference = Reference(Two(lambda x: (x.mul_(2), torch.randn(1) * 0 + x)), (x,))
    reference.eager((x,))
    reference.exact((x,))
    assert torch.equal(x, rows(5))
    assert torch.equal(state, torch.get_rng_state())


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls, x


@pytest.mark.parametrize("model", [Noisy, Counts, lambda: Two(lambda x: (x, x[:-1]))])
def test_a_model_that_does_not_repeat_or_loses_rows_is_named(model):
    with pytest.raises(OnnxExportError, match=r"two runs differ|must have shape \(16, C, \.\.\.\)"):
        Reference(model(), (rows(),))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda x: x, r"two heads, \(regression, classification\), got 1 tensor.*: wrap"),
        (lambda x: {"r": x, "c": x}, r"returns \['r', 'c'\], and the regression head is not one"),
        (lambda x: (x, "x"), "must return tensors, and 1 is a str: wrap"),
        (lambda x: (x, x, x), r"returns 3 tensors, and \['2'\] is neither head"),
        (lambda x: (x, x.argmax(1)), "classification output must be floating point, got torch.int"),
        (lambda x: (x, x[:, 0]), r"classification output of 16 rows .*\(16, C, ...\), got \(16,\)"),
        (lambda x: (x.sum(), x), r"regression output of 16 rows .*\(16, ...\), got \(\)"),
        (lambda x: (x.sum(0), x), r"regression output of 16 rows .* got \(4,\)"),
        (lambda x: 1 / 0, r"the model itself fails on \(16, 4\) torch.float32: division by zero"),
    ],
)
def test_what_is_not_two_heads_is_named(outputs, said):
    with pytest.raises(OnnxExportError, match=said):
        Reference(Two(outputs), (rows(),))


def test_a_list_and_a_vector_of_regressions_are_two_heads():
    Reference(Two(lambda x: [x[:, 0], x]), (rows(),))
