import math

import pytest
import torch

from fused_loss.bench.verify import Distance, Error, allowance, complaint

EPS = torch.finfo(torch.float32).eps


def distance(output: list[float], reference: list[float], blocks: int = 1) -> Error:
    found = Distance()
    exact = torch.tensor(reference, dtype=torch.float64)
    for block, truth in zip(torch.tensor(output).chunk(blocks), exact.chunk(blocks), strict=True):
        found.add(block, truth)
    return found.error()


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_both_errors_by_hand_whatever_the_blocks(blocks: int):
    # differences 1, 0, -2, 0 of 2, 4, 4, 8: norms sqrt(5) and 10
    assert distance([3.0, 4.0, 2.0, 8.0], [2.0, 4.0, 4.0, 8.0], blocks) == pytest.approx(
        (math.sqrt(5) / 10, 2 / 8)
    )


def test_no_error_is_none_even_of_zeros():
    assert distance([0.0, 0.0], [0.0, 0.0]) == (0.0, 0.0)
    assert distance([1e-9, 0.0], [0.0, 0.0]) == (math.inf, math.inf)


def test_what_is_allowed_is_twice_eager_s_error_or_the_rounding():
    outputs = {"single": torch.zeros(1), "half": torch.zeros(1, dtype=torch.bfloat16)}
    allowed = allowance({"single": Error(1e-3, 1e-9)}, outputs)
    assert allowed["single"] == pytest.approx((2e-3, 9 * EPS))
    assert allowed["half"] == pytest.approx([2**-7 + 8 * EPS] * 2)


def test_the_first_output_that_is_wrong_is_named():
    allowed = {"loss": Error(1e-6, 1e-6), "gradient": Error(1e-6, 1e-6)}
    right = Error(1e-6, 1e-6)
    assert complaint({"loss": right, "gradient": right}, allowed) is None
    found = complaint({"loss": right, "gradient": Error(1e-7, 2e-6)}, allowed)
    assert found == "gradient: max error 2.0e-06 > 1.0e-06"
    assert "norm error nan" in (complaint({"loss": Error(math.nan, 0.0)}, allowed) or "")
