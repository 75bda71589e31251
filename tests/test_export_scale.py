import numpy as np
import pytest

from fused_loss.export.compare import Runs, compare
from fused_loss.export.scale import columns, tiers
from fused_loss.export.tolerance import Rule

EPS = 2.0**-23


@pytest.mark.parametrize("sentinel", [-1e9, -65536.0, -1e4, 3.4e38])
def test_what_a_mask_writes_is_a_tier_of_its_own(sentinel):
    values = np.array([[1.0, sentinel, -3.0], [sentinel, 0.5, 0.0]])
    assert tiers(values).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_mask_that_is_added_makes_a_narrow_band_and_two_masks_two():
    values = np.array([1.0, -2.0, -1e9 + 1, -1e9 - 2, -1e4 + 1, -1e4])
    assert tiers(values).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0],
        [],
        [5.0],
        [1e6, -2e5, 3e4, 1e3, 10.0, 0.1],  # a wide distribution
        [1e6, 2e6, 1.0],  # large values that are not alike
        [99.0, 1.0],
    ],
)
def test_an_ordinary_head_is_one_tier(values):
    assert not tiers(np.array(values)).any()


def test_columns_are_along_axis_1():
    assert columns(np.zeros((2, 3))).tolist() == [[0, 1, 2]] * 2
    assert columns(np.zeros((1, 2, 2))).tolist() == [[[0, 0], [1, 1]]]
    assert columns(np.zeros(3)).tolist() == [0, 0, 0]


def verdict(found, exact, eager=None):
    arrays = [np.array(found, "f"), np.array(exact if eager is None else eager, "f")]
    runs = Runs(*([a] for a in (*arrays, np.array(exact, float))))
    return compare("head", 2, "ENABLE_ALL", 2, runs, classes=True)


def test_a_sentinel_does_not_widen_what_is_allowed_of_the_logits():
    exact = [[2.0, -1e9, 1.0], [-1e9, 0.5, 1.0]]
    good, bad = np.array(exact), np.array(exact)
    good[0, 2] += 64 * EPS * 2
    bad[0, 2] += 80 * EPS * 2
    assert verdict(good, exact).passed
    refused = verdict(bad, exact)
    assert refused.problem.startswith("max error 1.9e-05 > 1.5e-05")
    assert refused.scale == 2.0
    assert not verdict([[2.0, -9e8, 1.0], [-1e9, 0.5, 1.0]], exact).passed


def test_of_int8_a_sentinel_is_allowed_its_size_and_the_logits_their_spread():
    rule = Rule(eager_factor=0.0, eps_factor=0.0, share=0.1, spread=(3.0,))
    exact = np.array([[2.0, -1e9], [-1.0, 0.5]])
    for off, passed in (((0, 1), True), ((0, 0), False)):
        found = exact.copy()
        found[off] += 0.5
        runs = Runs([found.astype("f")], [exact.astype("f")], [exact])
        assert compare("c", 2, "", 2, runs, classes=True, rule=rule).passed is passed


def test_a_small_column_beside_a_large_one_is_measured_by_its_own_values():
    exact = np.array([[1e6, 1.0], [-3e5, 0.5]])
    eager = exact * (1 + EPS)  # else nothing is known of the columns
    off = exact.copy()
    off[0, 1] += 15 * 64 * EPS
    assert verdict(off, exact, eager).passed
    off[0, 1] += 2 * 64 * EPS
    assert not verdict(off, exact, eager).passed
