"""Laws of the loss on inputs that hypothesis draws."""

from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, error, expected, fused, numpy, ulp
from _cases import BF16, F16, F32, F64, PLACES, Case, Problem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)

DTYPES = st.sampled_from([F64, F32, BF16, F16])
ORDERS = ["rows", "samples innermost", "classes innermost", "spaced"]


def repeated(examples):
    """The same examples in every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def arranged(x, order):
    """The values of x in another order in memory."""
    if order == "spaced":
        return x.new_empty(*x.shape, 2)[..., 0].copy_(x)
    if order == "rows" or x.dim() < 2:
        return x.clone()
    place = 0 if order == "samples innermost" else 1
    return x.movedim(place, -1).contiguous().movedim(-1, place)


@st.composite
def problems(draw):
    """Any call: small tensors, every option, values from a seed."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    n, c = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    spatial = draw(st.lists(st.integers(1, 3), max_size=2))
    features = draw(st.lists(st.integers(1, 3), max_size=2))
    r_dtype, z_dtype = draw(DTYPES), draw(DTYPES)
    loss_dtype = F64 if F64 in (r_dtype, z_dtype) else F32
    order = st.sampled_from(ORDERS)

    def values(shape, dtype, spread=1.0):
        x = torch.randn(shape, generator=random, dtype=F64) * spread
        return arranged(x.to(dtype), draw(order))

    keywords = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    keywords["label_smoothing"] = draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0]))
    if draw(st.booleans()):
        every = [0.0, 0.5, 1.0, 3.0]
        weight = draw(st.lists(st.sampled_from(every), min_size=c, max_size=c))
        keywords["class_weight"] = torch.tensor(weight).to(z_dtype)
    z = values((n, c, *spatial), z_dtype, draw(st.sampled_from([0.1, 3.0, 30.0])))
    if draw(st.booleans()):
        t = arranged(torch.rand(z.shape, generator=random, dtype=F64).to(z_dtype), draw(order))
    else:
        ignored = draw(st.sampled_from([-100, 0, c - 1]))
        keywords["ignore_index"] = ignored
        t = torch.randint(0, c, (n, *spatial), generator=random)
        missing = torch.rand(t.shape, generator=random) < draw(st.sampled_from([0.0, 0.4, 1.0]))
        t = arranged(t.masked_fill(missing, ignored), draw(order))
    alpha = draw(st.integers(0, 16)) / 16
    keywords["alpha"] = alpha
    shape = (n,) if keywords["reduction"] == "none" else ()
    upstream = torch.randn(shape, generator=random, dtype=F64).to(loss_dtype)
    r, y = (values((n, *features), r_dtype) for _ in range(2))
    return Problem(r, z, y, t, keywords, (alpha, 1 - alpha), upstream)


def moved(problem, device):
    """Onto the device, strides kept."""

    def move(x):
        return x.to(device) if torch.is_tensor(x) else x

    tensors = (problem.r, problem.z, problem.y, problem.t)
    keywords = {name: move(value) for name, value in problem.keywords.items()}
    return Problem(*map(move, tensors), keywords, problem.weights, problem.grad_output.to(device))


def examples_for(backend, few, many):
    return repeated(few if backend == "triton" else many)


def test_any_call_is_right(backend, device):
    @examples_for(backend, 40, 250)
    @given(problems())
    def holds(problem):
        problem = moved(problem, device)
        actual, reference = fused(problem, backend), fused(problem, "reference")
        assert_matches(problem, actual, reference, (backend, device) == ("triton", "cpu"))

    holds()


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
