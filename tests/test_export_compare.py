"""Hand-made arrays on each side of the rule; every number here is a float32."""

import numpy as np
import pytest

from fused_loss.export.compare import Runs, compare

EPS = 2.0**-23  # of float32
EAGER_FACTOR, EPS_FACTOR = 16, 64  # the rule, not the code
NAN, INF = np.nan, np.inf


def held(found, eager=None, exact=None, *, classes=False, dtype=np.float32):
    """`compare` of one run; eager and float64 are what was found unless they are given."""
    exact = found if exact is None else exact
    eager = exact if eager is None else eager
    arrays = [np.array(found, dtype), np.array(eager, dtype), np.array(exact, np.float64)]
    runs = Runs(*([a] for a in arrays))
    return compare("head", len(found), "ENABLE_ALL", len(found), runs, classes=classes)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 4096.0])
def test_without_an_error_of_eager_64_eps_of_the_largest_value_pass_and_a_step_more_does_not(scale):
    edge = EPS_FACTOR * EPS * scale
    at = held([[scale + edge], [0.0]], exact=[[scale], [0.0]])
    above = held(
        [[np.nextafter(np.float32(scale + edge), np.float32(INF))], [0]], exact=[[scale], [0]]
    )
    assert at.passed
    assert at.error == at.allowed == edge
    assert not above.passed
    assert above.problem == f"max error {above.error:.1e} > {edge:.1e}"


def test_16_times_the_error_of_eager_passes_and_a_step_more_does_not():
    off = 2.0**-9
    edge = 1.0 + EAGER_FACTOR * off
    at = held([[edge]], eager=[[1.0 - off]], exact=[[1.0]])
    above = held([[edge + EPS]], eager=[[1.0 - off]], exact=[[1.0]])
    assert at.passed
    assert at.eager_error == off
    assert at.error == at.allowed == EAGER_FACTOR * off
    assert not above.passed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_epsilon_is_that_of_the_outputs_dtype(dtype):
    eps = float(np.finfo(dtype).eps)
    assert held([[1.0 + 64 * eps]], exact=[[1.0]], dtype=dtype).passed
    assert not held([[1.0 + 65 * eps]], exact=[[1.0]], dtype=dtype).passed


def test_the_largest_value_of_all_runs_is_the_scale_of_each():
    off = EPS_FACTOR * EPS * 8
    runs = [np.zeros((1, 1), np.float32), np.full((1, 1), 8, np.float32)]
    exact = [run.astype(np.float64) for run in runs]
    found = [runs[0] + np.float32(off), runs[1]]
    assert compare("head", 1, "", 2, Runs(found, runs, exact), classes=False).passed
    alone = Runs(found[:1], runs[:1], exact[:1])
    assert not compare("head", 1, "", 1, alone, classes=False).passed


def test_zeros_must_be_zeros():
    assert held([[0.0, -0.0]], exact=[[0.0, 0.0]]).passed
    assert not held([[0.0, 1e-30]], exact=[[0.0, 0.0]]).passed


def test_where_eager_is_off_by_as_much_as_the_values_nothing_is_accepted():
    comparison = held([[1.0]], eager=[[1.125]], exact=[[1.0]])
    assert not comparison.passed
    assert comparison.error == 0.0
    assert "nothing can be verified" in comparison.problem
    assert held([[1.0]], eager=[[1.0625]], exact=[[1.0]]).passed


@pytest.mark.parametrize(
    ("found", "eager", "passed"),
    [
        ([1, NAN], [1, NAN], True),
        ([1, INF], [1, INF], True),
        ([1, -INF], [1, -INF], True),
        ([1, INF], [1, -INF], False),
        ([1, NAN], [1, INF], False),
        ([1, 1], [1, NAN], False),
        ([1, NAN], [1, 1], False),
        ([1, INF], [1, 1], False),
        ([NAN, 1], [1, NAN], False),
    ],
)
def test_infinities_and_nan_stand_where_eager_has_them(found, eager, passed):
    comparison = held([found], [eager], np.nan_to_num([eager], nan=1, posinf=1, neginf=1))
    assert comparison.passed is passed
    assert bool(comparison.problem) is not passed


def test_a_head_without_a_finite_value_is_refused_and_one_that_only_float64_overflows_too():
    assert "no finite value" in held([[NAN, INF]]).problem
    assert "1 inf in float64" in held([[1.0, 2.0]], [[1.0, 2.0]], [[1.0, INF]]).problem


def test_an_empty_batch_agrees_if_its_shape_and_dtype_do():
    empty = np.empty((0, 3), np.float32)
    both = [empty], [empty.astype(float)]
    assert compare("head", 0, "", 0, Runs([empty], *both), classes=True).passed
    other = empty.reshape(0, 1, 3)
    refused = compare("head", 0, "", 0, Runs([other], *both), classes=True)
    assert refused.problem == "float32 (0, 1, 3) from onnxruntime, float32 (0, 3) from PyTorch"


@pytest.mark.parametrize(
    "found", [np.ones((2, 1), np.float32), np.ones(2), np.ones(2, np.float16), np.ones(1, "f")]
)
def test_shape_and_dtype_are_those_of_eager(found):
    eager = np.ones(2, np.float32)
    comparison = compare("head", 2, "", 2, Runs([found], [eager], [np.ones(2)]), classes=False)
    assert not comparison.passed
    assert f"{found.dtype} {found.shape} from onnxruntime" in comparison.problem


ALLOWED = EPS_FACTOR * EPS  # of logits whose largest is 1


@pytest.mark.parametrize(
    ("margin", "passed", "agreement"),
    [(1.5 * ALLOWED, False, 0.5), (ALLOWED, True, 1.0), (0.5 * ALLOWED, True, 1.0)],
)
def test_another_argmax_is_an_error_where_the_margin_is_more_than_the_tolerance(
    margin, passed, agreement
):
    exact = [[1.0 - margin, 1.0], [1.0, 0.0]]
    shift = min(margin, ALLOWED)
    found = [[1.0 - margin + shift, 1.0 - shift], [1.0, 0.0]]
    comparison = held(found, exact=exact, classes=True)
    assert np.argmax(found[0]) == 0
    assert comparison.error <= comparison.allowed
    assert comparison.passed is passed
    assert comparison.argmax_agreement == agreement
    assert held(found, exact=exact).passed  # the rule is for logits alone
    if not passed:
        assert comparison.problem == "argmax differs in 50.0% of the clear cases"


def test_classes_are_on_axis_1():
    truth = np.zeros((1, 2, 3))
    truth[0, 1] = 1.0  # class 1 wins at all 3 positions
    assert held(truth, exact=truth, classes=True).argmax_agreement == 1.0


def test_a_single_class_and_ties_have_no_argmax_to_agree_on():
    assert held([[1.0], [2.0]], classes=True).argmax_agreement is None
    assert held([[1.0, 1.0]], classes=True).argmax_agreement is None
    assert held([[1.0, -INF, INF]], [[1, -INF, INF]], [[1, -INF, INF]], classes=True).passed
