"""Laws of the loss on inputs that hypothesis draws."""

from dataclasses import replace

import pytest
import torch
from _asserts import (
    assert_as_reference,
    assert_matches,
    composed,
    error,
    expected,
    fused,
    launches,
    numpy,
    ulp,
)
from _cases import F32, F64, PLACES, Case, Problem
from _draws import problems
from _tables import table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fused_loss.kernels.triton_math import PEELED

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)


def repeated(examples):
    """The same examples in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def moved(problem, device):
    """Onto the device, strides kept."""

    def move(x):
        return x.to(device) if torch.is_tensor(x) else x

    tensors = (problem.r, problem.z, problem.y, problem.t)
    keywords = {name: move(value) for name, value in problem.keywords.items()}
    return Problem(*map(move, tensors), keywords, problem.weights, problem.grad_output.to(device))


def examples_for(backend, few, many):
    return repeated(few if backend == "triton" else many)


def searched(backend, few, many):
    """So many examples, or those of the profile that pytest was told to use."""
    asked = settings().max_examples
    if asked == settings.get_profile("default").max_examples:
        return examples_for(backend, few, many)
    return settings(repeated(asked), derandomize=False)


def test_any_call_is_right(backend, device):

    @searched(backend, 40, 200)
    @given(problems())
    def holds(drawn):
        problem, special = drawn
        problem = moved(problem, device)
        reference = fused(problem, "reference")
        for name in ("eager", "auto") if backend == "eager" else (backend,):
            actual = fused(problem, name)
            if special:
                assert_as_reference(problem, actual)
            else:
                assert_matches(problem, actual, reference)
        if backend == "eager" and not special:  # the yardstick itself
            assert_matches(problem, reference, composed(problem))

    holds()


TABLE = {
    "TILE": 32, "WIDE": 1, "STRIDED_BLOCK": 32, "BLOCK_MAX": 64,
    "STREAM_BLOCK": 32, "SPLIT_FROM": 25, "SPLIT_BLOCK": 16, "SPLIT_MOST": 4,
    "_registers": lambda values, itemsize: (1, 1),
}  # fmt: skip


@pytest.fixture
def shrunken():
    """A launch table in which rows of 25 classes are split, odd ones of 33 and all of 65 long.

    Blocks are the same for every dtype: the fewer columns they have, the more roundings a sum.
    """
    with table(TABLE, processors=4):
        yield


def test_any_call_with_long_rows_is_right(shrunken, backend, device):
    """Of Triton's kept, in blocks, peeled, in slices."""
    kinds = set()

    @searched(backend, 15, 40)
    @given(problems(17, 100, 1))
    def holds(drawn):
        problem, special = drawn
        problem = moved(problem, device)
        with launches() as log:
            actual = fused(problem, backend)
        for arguments in log.arguments:
            kinds.update((name, arguments.get(name)) for name in ("SPLIT", "ONE_BLOCK", "UNIT"))
        if special:
            assert_as_reference(problem, actual)
        else:
            assert_matches(problem, actual, composed(problem))

    holds()
    if backend == "triton":
        long = {("ONE_BLOCK", False), ("UNIT", PEELED.value), ("SPLIT", 4)}
        assert kinds >= long | {("ONE_BLOCK", True), ("UNIT", 1), ("SPLIT", 0)}


def assert_equal_results(problem, one, other):
    """To two ulps on each side, at the largest term."""
    _, terms = expected(problem)
    for name, value in one.items():
        bound = 4 * ulp(terms[name], problem.grad_output.dtype)
        assert error(value, numpy(other[name])) <= bound, name


CASES = st.builds(
    Case,
    reduction=st.sampled_from(["mean", "sum", "none"]),
    targets=st.sampled_from(["hard", "hard-100", "soft"]),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.25]),
    upstream=st.sampled_from(["one", "other"]),
    dtypes=st.sampled_from([(F32, F32), (F64, F64)]),
)


def test_a_shift_of_a_row_changes_nothing(backend, device):
    """The logits are multiples of 2^-10 and the shift is an integer: their sum is exact."""

    @examples_for(backend, 6, 60)
    @given(CASES, st.lists(st.integers(-900, 900), min_size=4, max_size=4))
    def holds(case, shifts):
        problem = case.problem(device)
        z = (problem.z * 1024).round() / 1024
        shift = torch.tensor(shifts, device=device, dtype=z.dtype)
        plain = problem._replace(z=z)
        shifted = problem._replace(z=z + shift[:, None])
        own = [fused(p, "reference") for p in (plain, shifted)]
        one, other = (fused(p, backend) for p in (plain, shifted))
        _, terms = expected(plain)
        for name, value in one.items():
            allowed = error(own[0][name], numpy(own[1][name])) + 4 * ulp(terms[name], z.dtype)
            assert error(value, numpy(other[name])) <= allowed, name

    holds()


def test_samples_in_another_order(backend, device):
    @examples_for(backend, 6, 60)
    @given(CASES, st.permutations(range(4)))
    def holds(case, order):
        problem = case.problem(device)
        order = torch.tensor(order, device=device)
        grad_output = problem.grad_output
        mixed = problem._replace(
            r=problem.r[order],
            z=problem.z[order],
            y=problem.y[order],
            t=problem.t[order],
            grad_output=grad_output[order] if grad_output.dim() else grad_output,
        )
        plain = fused(problem, backend)
        wanted = {name: value[order] if value.dim() else value for name, value in plain.items()}
        assert_equal_results(mixed, fused(mixed, backend), wanted)

    holds()


def test_the_sum_is_the_mean_times_its_denominator(backend, device):
    @examples_for(backend, 6, 60)
    @given(CASES)
    def holds(case):
        mean = replace(case, reduction="mean").problem(device)
        total = mean._replace(keywords={**mean.keywords, "reduction": "sum"})
        one, all_ = fused(mean, backend), fused(total, backend)
        count = torch.tensor(4.0, dtype=F64)
        if not mean.t.is_floating_point():
            labelled = mean.t != -100
            weight = mean.keywords.get("class_weight", torch.ones(5, device=device)).double()
            count = weight[mean.t.clamp(min=0)][labelled].sum().cpu()
        wanted = {
            "regression": one["regression"].cpu().double() * mean.r.numel(),
            "classification": one["classification"].cpu().double() * count,
            "r": one["r"].cpu().double() * mean.r.numel(),
            "z": one["z"].cpu().double() * count,
        }
        found = {name: all_[name] for name in wanted}
        assert_equal_results(total, found, wanted)

    holds()


def test_the_loss_is_linear_in_its_components(backend, device):
    @examples_for(backend, 6, 60)
    @given(CASES, st.integers(0, 64))
    def holds(case, share):
        alpha = share / 64
        problem = case.problem(device)
        keywords = {**problem.keywords, "alpha": alpha}
        problem = problem._replace(keywords=keywords, weights=(alpha, 1 - alpha))
        found = fused(problem, backend)
        mse, ce = found["regression"].double(), found["classification"].double()
        wanted = {"loss": alpha * mse + (1 - alpha) * ce}
        assert_equal_results(problem, {"loss": found["loss"]}, wanted)

    holds()


def test_one_hot_probabilities_are_class_indices(backend, device):
    """Under "sum" and "none": the "mean" of probabilities divides by their number."""

    @examples_for(backend, 6, 60)
    @given(CASES.filter(lambda case: case.targets == "hard" and case.reduction != "mean"))
    def holds(case):
        hard = case.problem(device)
        one_hot = torch.nn.functional.one_hot(hard.t, 5).to(hard.z.dtype)
        assert_equal_results(hard, fused(hard._replace(t=one_hot), backend), fused(hard, backend))

    holds()
