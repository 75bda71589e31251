"""What a row comes to is rounded once: its loss, and the gradient at its label."""

import pytest
import torch
from _asserts import composed, fused
from _cases import F32, TRITON_PLACES, Problem

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)


def problem_of(classes: int, device: str, soft: bool = False, **keywords) -> Problem:
    """Five samples of float32; the logits spread over some 15."""
    random = torch.Generator().manual_seed(classes)
    r, y = (torch.randn(5, 3, generator=random) for _ in range(2))
    z = 3 * torch.randn(5, classes, generator=random)
    t = torch.randint(classes, (5,), generator=random)
    if soft:
        t = torch.rand(5, classes, generator=random)
    keywords = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in keywords.items()
    }
    upstream = torch.rand(5, generator=random) if keywords.get("reduction") == "none" else 1.0
    tensors = (x.to(device) for x in (r, z, y, t))
    return Problem(*tensors, keywords, (0.5, 0.5), torch.as_tensor(upstream, device=device))


def units(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest error in units of float32's last place at the largest value."""
    off = (found.double() - exact.double()).abs().max()
    return float(off / exact.double().abs().max() / torch.finfo(F32).eps)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_and_gradients_at_labels(reduction, smoothing, backend, device):
    random = torch.Generator().manual_seed(1)
    weights = {
        "class_weight": torch.rand(97, generator=random) + 0.5,
        "regression_weight": torch.rand(5, 3, generator=random) + 0.5,
    }
    keywords = {"reduction": reduction, "label_smoothing": smoothing, **weights}
    problem = problem_of(97, device, **keywords)
    wide = problem._replace(
        **{name: getattr(problem, name).double() for name in ("r", "z", "y", "grad_output")},
        keywords={**keywords, **{name: w.double().to(device) for name, w in weights.items()}},
    )
    actual, exact = fused(problem, backend), composed(wide)
    for name in ("loss", "regression", "classification", "r"):
        assert units(actual[name], exact[name]) <= 1, name
    at_label = (x["z"].gather(1, problem.t[:, None]) for x in (actual, exact))
    assert units(*at_label) <= 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_class_has_no_gradient_whatever_it_weighs(smoothing, soft, reduction, backend, device):
    keywords = {"label_smoothing": smoothing, "class_weight": torch.tensor([0.7])}
    problem = problem_of(1, device, soft, reduction=reduction, **keywords)
    assert not fused(problem, backend)["z"].any()


def test_an_infinite_scale_is_as_pytorch_has_it(backend, device):
    """A normalizer of 0: infinity times p less itself is NaN at the label, ±inf elsewhere."""
    problem = problem_of(4, device, classification_normalizer=0.0)
    found, wanted = (fused(problem, name)["z"] for name in (backend, "reference"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert found.isnan().sum() == 5
