"""The pieces that every kernel is made of, each in a kernel of its own."""

import pytest
import torch
import triton
import triton.language as tl
from _cases import BF16, F16, F32, F64, TRITON_PLACES

from fused_loss.kernels import triton_math
from fused_loss.kernels.triton_math import ratio, rounded, row_sums, tiles_of

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)


@triton.jit
def round_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, rounded(tl.load(x_ptr + i), y_ptr))


@triton.jit
def sum_kernel(x_ptr, y_ptr, C, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    row, c = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)[None, :]
    x = tl.load(x_ptr + row[:, None] * C + c, mask=c < C, other=0.0)
    tl.store(y_ptr + row, row_sums(x, x_ptr, True))


@triton.jit
def ratio_kernel(a_ptr, b_ptr, q_ptr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(q_ptr + i, ratio(tl.load(a_ptr + i), tl.load(b_ptr + i), ACC))


@triton.jit
def tiles_kernel(y_ptr, n, SIZE: tl.constexpr):
    tl.store(y_ptr, tiles_of(n, SIZE))


@triton.jit
def rough_reciprocal(x):
    """Off by a unit in the last place of float32, as a GPU's may be."""
    return (1.0 / x.to(tl.float64) * (1.0 + 1.1e-7)).to(tl.float32)


@pytest.mark.parametrize(("wide", "narrow"), [(F32, BF16), (F64, BF16), (F32, F16), (F32, F32)])
def test_a_value_is_rounded_as_pytorch_rounds_it(wide, narrow, backend, device):
    """Ties, the least and the largest numbers, and what is none."""
    random = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 14,), generator=random, dtype=torch.int64)
    x = bits.int().view(F32)
    x[::2].view(torch.int32).bitwise_and_(-(1 << 15))  # half of them end in a tie, or in nothing
    x[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(F32).max])
    x = x.to(device, wide)
    y = torch.empty(len(x), device=device, dtype=narrow)
    round_kernel[(1,)](x, y, len(x))
    torch.testing.assert_close(y, x.to(F32).to(narrow), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
@pytest.mark.parametrize("classes", [1, 2, 97, 1000, 4096])
def test_a_row_of_exponentials_is_summed_to_one_rounding(classes, spread, backend, device):
    """In any order: an ordinary sum is off by several."""
    random = torch.Generator().manual_seed(classes)
    x = torch.randn(8, classes, generator=random) * spread
    x = (x - x.amax(1, keepdim=True)).exp().to(device)
    y = torch.empty(8, device=device)
    sum_kernel[(1,)](x, y, classes, 8, triton.next_power_of_2(classes))
    exact = x.double().sum(1)
    # Half a unit in the last place, and the roundings of a rest that is a part of it.
    assert ((y - exact).abs() / exact).max() <= 0.75 * torch.finfo(F32).eps


def test_an_infinite_probability_makes_an_infinite_sum(backend, device):
    x = torch.rand(8, 97, generator=torch.Generator().manual_seed(0))
    x[1, 3], x[2, 5], x[3, 5:7] = torch.inf, torch.nan, torch.inf
    y = torch.empty(8, device=device)
    sum_kernel[(1,)](x.to(device), y, 97, 8, 128)
    assert y[[1, 3]].tolist() == [torch.inf] * 2
    assert y.isfinite().tolist() == [True, False, False, False, *[True] * 4]


@pytest.mark.parametrize("reciprocal", ["as it is", "rough"])
def test_a_quotient_is_float64_s_but_for_the_last_bits(reciprocal, backend, device, monkeypatch):
    """To 2^-44 of itself, though it begins with a reciprocal in float32; exactly for float64."""
    if reciprocal == "rough":
        monkeypatch.setattr(triton_math, "reciprocal", rough_reciprocal)
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1024, generator=random, dtype=F64).to(device)
    b = torch.exp(12 * b).clamp(1e-30, 1e30)  # a sum of exponentials has a wide range
    found = torch.empty_like(a)
    for kind, bound in ((tl.float32, 2.0**-44), (tl.float64, 0.0)):
        ratio_kernel[(1,)](a, b, found, 1024, kind)
        assert ((found - a / b).abs() <= bound * (a / b).abs()).all()


@pytest.mark.parametrize(
    "n", [0, 1, 2, 4096, 4097, (1 << 31) - 4096, (1 << 31) - 1, 1 << 31, 1 << 40]
)
@pytest.mark.parametrize("size", [1, 4096])
def test_so_many_tiles_hold_any_number_of_elements(n, size, backend, device):
    y = torch.zeros((), dtype=torch.int64, device=device)
    tiles_kernel[(1,)](y, n, size)
    assert y == -(-n // size)
