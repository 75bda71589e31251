"""Masks, weights, missing targets and normalizers: what each of them must not change."""

from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, fused
from _cases import BF16, EVERY_OPTION, EXHAUSTIVE, F16, F32, F64, PLACES, REDUCTIONS, Case

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)

INF, NAN = float("inf"), float("nan")
ALL = replace(EVERY_OPTION, normalizers="")


@pytest.mark.slow
@pytest.mark.parametrize("case", EXHAUSTIVE, ids=str)
def test_every_combination(case, backend, device):
    problem = case.problem(device)
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


def given(problem, **keywords):
    return problem._replace(keywords={**problem.keywords, **keywords})


def assert_same(one, other, names=None):
    for name in names or one:
        assert torch.equal(one[name].nan_to_num(9.0), other[name].nan_to_num(9.0)), name


@pytest.mark.parametrize("poison", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_logit_of_an_impossible_class_does_not_matter(
    reduction, targets, poison, backend, device
):
    problem = replace(ALL, reduction=reduction, targets=targets).problem(device)
    mask = problem.keywords["class_mask"]
    clean = fused(problem, backend)
    actual = fused(problem._replace(z=problem.z.masked_fill(~mask, poison)), backend)
    assert_same(actual, clean)
    assert not actual["z"][~mask].any()


@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_logit_of_minus_infinity_is_a_mask(reduction, targets, backend, device):
    """Where no target lies on it: `0·log 0` is 0 either way."""
    case = replace(ALL, reduction=reduction, targets=targets, mask="classes", smoothing=0.0)
    problem = case.problem(device)
    mask = problem.keywords["class_mask"]
    everything = torch.ones_like(mask)
    infinite = problem._replace(z=problem.z.masked_fill(~mask, -INF))
    assert_same(fused(given(infinite, class_mask=everything), backend), fused(problem, backend))


@pytest.mark.parametrize("poison", [NAN, INF, 1e30])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_stands_at_a_missing_target_does_not_matter(reduction, poison, backend, device):
    """Neither the prediction nor the weight; the gradient there is exactly 0."""
    problem = replace(ALL, reduction=reduction).problem(device)
    missing = problem.y.isnan()
    clean = fused(problem, backend)
    weight = problem.keywords["regression_weight"].masked_fill(missing, poison)
    poisoned = problem._replace(r=problem.r.masked_fill(missing, poison))
    actual = fused(given(poisoned, regression_weight=weight), backend)
    assert_same(actual, clean)
    assert not actual["r"][missing].any()


@pytest.mark.parametrize("poison", [NAN, INF, 1e30])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_stands_at_an_ignored_position_does_not_matter(reduction, poison, backend, device):
    problem = replace(ALL, reduction=reduction).problem(device)
    ignored = problem.t == -100
    clean = fused(problem, backend)
    weight = problem.keywords["classification_weight"].masked_fill(ignored, poison)
    mask = problem.keywords["class_mask"].masked_fill(ignored[:, None], False)
    poisoned = problem._replace(z=problem.z.masked_fill(ignored[:, None], poison))
    actual = fused(given(poisoned, classification_weight=weight, class_mask=mask), backend)
    assert_same(actual, clean)
    assert not actual["z"][ignored].any()


@pytest.mark.parametrize("name", ["class_mask", "regression_weight", "classification_weight"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_is_spread_is_what_is_written_out(reduction, name, backend, device):
    """A dimension of 1 gives the bits of the expanded and of the copied tensor."""
    case = replace(ALL, layout="NCd", reduction=reduction, targets="soft")
    problem = case.problem(device)
    whole = {
        "class_mask": torch.ones_like(problem.z, dtype=torch.bool),
        "regression_weight": torch.ones_like(problem.r),
        "classification_weight": torch.ones(2, 3, device=device),
    }[name]
    for axis in range(whole.dim()):
        few = whole.narrow(axis, 0, 1).clone()
        few.view(-1)[0] = 0  # False
        written = fused(given(problem, **{name: few.expand(whole.shape).contiguous()}), backend)
        for spread in (few, few.expand(whole.shape)):
            assert_same(fused(given(problem, **{name: spread}), backend), written)


@pytest.mark.parametrize("layout", ["C", "NC", "NCd"])
def test_a_mask_of_classes_is_one_for_every_position(layout, backend, device):
    problem = replace(ALL, layout=layout, targets="soft", mask="classes").problem(device)
    mask = problem.keywords["class_mask"]
    actual = fused(problem, backend)
    if layout != "C":
        mask = mask.view(1, -1, *[1] * (problem.z.dim() - 2)).expand(problem.z.shape)
    assert_same(actual, fused(given(problem, class_mask=mask), backend))


@pytest.mark.parametrize("dtypes", [(F64, F64), (F32, F32), (BF16, BF16), (F16, F16)], ids=str)
def test_weights_of_one_and_a_mask_without_effect(dtypes, backend, device):
    """They give what no weights and no mask give, as near as the oracle holds both to."""
    plain = Case("mean", "NCd", "hard-100", smoothing=0.25, dtypes=dtypes).problem(device)
    problem = given(
        plain,
        class_mask=torch.ones(5, dtype=torch.bool, device=device),
        class_weight=torch.ones(5, device=device),
        regression_weight=torch.ones(1, 1, 1, device=device),
        classification_weight=torch.ones(1, 1, device=device),
        nan_targets="ignore",
        empty="zero",
    )
    assert_matches(plain, fused(problem, backend), fused(plain, "reference"))


@pytest.mark.parametrize("targets", ["hard-100", "soft"])
def test_a_normalizer_that_is_the_denominator(targets, backend, device):
    case = replace(ALL, targets=targets)
    problem = case.problem(device)
    keywords = problem.keywords
    present, labelled = ~problem.y.isnan(), torch.ones(4, dtype=torch.bool, device=device)
    share = keywords["classification_weight"]
    if targets != "soft":
        labelled = problem.t != -100
        share = share * keywords["class_weight"][problem.t.clamp(min=0)]
    normalizers = {
        "regression_normalizer": keywords["regression_weight"][present].sum(),
        "classification_normalizer": share[labelled].sum(),
    }
    normalized = given(problem, **normalizers)
    actual = fused(normalized, backend)
    assert_matches(normalized, actual, fused(normalized, "reference"))
    numbers = {name: value.item() for name, value in normalizers.items()}
    assert_matches(normalized, fused(given(problem, **numbers), backend), actual)
    assert_matches(problem, actual, fused(problem, "reference"))


@pytest.mark.parametrize("dtype", [F64, BF16, F16])
def test_weights_of_any_dtype(dtype, backend, device):
    """Eighths are exact in each of them, and none of them promotes the loss."""
    problem = ALL.problem(device)
    rounded = {
        name: (problem.keywords[name] * 8).round() / 8
        for name in ("class_weight", "regression_weight", "classification_weight")
    }
    wide = fused(given(problem, **rounded), backend)
    other = {name: weight.to(dtype) for name, weight in rounded.items()}
    assert_same(fused(given(problem, **other), backend), wide)


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("shapes", [((0, 2), (0, 3)), ((0,), (0, 3, 4)), ((2, 0), (2, 3, 0))])
def test_an_empty_batch(shapes, empty, backend, device):
    """NaN or 0; and 0 / normalizer whatever `empty` says."""
    r, z = (torch.zeros(shape, device=device) for shape in shapes)
    t = torch.zeros(z.shape[:1] + z.shape[2:], dtype=torch.int64, device=device)
    problem = Case().problem(device)._replace(r=r, z=z, y=r.clone(), t=t)
    actual = fused(given(problem, empty=empty), backend)
    for name in ("loss", "regression", "classification"):
        assert actual[name].isnan() if empty == "nan" else actual[name] == 0
    normalizers = {"regression_normalizer": 3, "classification_normalizer": torch.tensor(2.0)}
    normalizers["classification_normalizer"] = torch.tensor(2.0, device=device)
    actual = fused(given(problem, empty=empty, **normalizers), backend)
    assert not any(value.any() for value in actual.values())
