import numpy as np
import pytest

from fused_loss.export.options import options
from fused_loss.export.signature import Signature
from fused_loss.export.tolerance import EXACT, Rule, rules_for

R, C = "regression_output", "classification_output"
EPS, HALF = 2.0**-23, 2.0**-10


def rules(atol=None, rtol=None, **asked):
    return rules_for(Signature(), options(("x",), **asked), atol, rtol)


def test_the_rule_of_acceptance():
    assert rules() == {R: EXACT, C: EXACT}
    eps = EXACT.eps(np.dtype("float32"))
    assert eps == EPS
    assert EXACT.allowed(1e-3, 2.0, eps) == 16e-3
    assert EXACT.allowed(0.0, 2.0, eps) == 128 * EPS


def test_half_precision_is_measured_by_its_own_epsilon_and_less_generously():
    half = rules(dtype="fp16")[R]
    assert half.eps(np.dtype("float32")) == HALF
    assert half.allowed(1e-3, 2.0, HALF) == max(4e-3, 8 * HALF)


def test_int8_is_measured_by_the_spread_of_each_column():
    int8 = rules(quantize="dynamic")[R]
    sized = Rule(int8.eager_factor, int8.eps_factor, share=int8.share, spread=(10.0, 1.0))
    assert [sized.allowed(1.0, 100.0, EPS, column) for column in (0, 1)] == [1.0, 0.1]


def test_what_the_user_allows_takes_the_place_of_the_rule():
    found = rules(atol={R: 0.5}, rtol=0.25)
    assert found[R].allowed(100.0, 8.0, EPS) == 0.5 + 2.0
    assert found[C].allowed(100.0, 8.0, EPS) == 2.0
    assert found[R].asked
    assert not EXACT.asked


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"atol": {"x": 1}}, ValueError, "atol names 'x', the outputs are"),
        ({"rtol": "1"}, TypeError, "rtol must be a number, got '1'"),
        ({"atol": -1}, ValueError, "atol must be finite and >= 0"),
        ({"atol": float("inf")}, ValueError, "atol must be finite"),
        ({"rtol": True}, TypeError, "rtol must be a number"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        rules(**given)
