import pytest
import torch

from fused_loss.kernels import eager_numbers
from fused_loss.kernels.eager_numbers import (
    class_sums,
    mean_of,
    number,
    sum_of_parts,
    total,
    weight_over,
)


@pytest.mark.parametrize("n", [0, 1, 511, 32768, 32769, 100_001, 3_000_001])
def test_a_total_is_that_of_float64(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    wide = values.double()
    if n <= eager_numbers.LONG_SUM:
        assert total(values) == pytest.approx(wide.sum().item(), rel=1e-13, abs=1e-13)
    else:  # rows of 512 in float32 first
        off = torch.finfo(torch.float32).eps * wide.abs().sum().item()
        assert total(values) == pytest.approx(wide.sum().item(), abs=off)


def test_a_total_of_what_is_not_adjacent():
    values = torch.randn(3, 40000, generator=torch.Generator().manual_seed(0)).t()
    assert total(values) == pytest.approx(values.double().sum().item(), rel=1e-5)


@pytest.mark.parametrize("skip_nan", [False, True])
@pytest.mark.parametrize("shape", [(2, 5), (1, 100_003), (1, 40_000, 1), (3, 40_000), (2, 4, 3)])
def test_sums_over_the_classes(shape, skip_nan):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    right = values.double().sum(1)
    if skip_nan:
        values[:, 2] = torch.nan
        right = values.double().nansum(1)
    found = class_sums(values, skip_nan)
    assert found.shape == right.shape
    off = torch.finfo(torch.float32).eps * values.nan_to_num().abs().sum(1).max().item()
    torch.testing.assert_close(found.double(), right, rtol=0, atol=off)


def test_a_sum_of_parts():
    assert sum_of_parts([1.5, 2.0]) == 3.5
    assert sum_of_parts([torch.tensor(1.0), torch.tensor(2.0)]).item() == 3.0
    rows = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert sum_of_parts(rows).tolist() == [4.0, 6.0]


def test_a_denominator_of_nothing():
    assert weight_over(3.0, 0, None) == 0.0
    assert weight_over(3.0, 0.5, None) == 6.0
    assert mean_of(2.0, 0, -1.0) == -1.0
    assert mean_of(2.0, 4, -1.0) == 0.5
    zero = number(0.0, None, torch.float64, torch.device("cpu"))
    assert weight_over(3.0, zero, zero).isinf()
    assert number(None, torch.tensor(2.5), torch.float64, torch.device("cpu")) == 2.5
    assert number(None, None, torch.float64, torch.device("cpu")) is None
