"""The pieces that every kernel is made of, each in a kernel of its own."""

import pytest
import torch
import triton
import triton.language as tl
from _cases import BF16, F16, F32, F64, TRITON_PLACES

from fused_loss.kernels.triton_math import rounded, row_sums

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)


@triton.jit
def round_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, rounded(tl.load(x_ptr + i), y_ptr))


@triton.jit
def sum_kernel(x_ptr, y_ptr, C, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    row, c = tl.arange(0, ROWS), tl.arange(0, BLOCK_C)[None, :]
    x = tl.load(x_ptr + row[:, None] * C + c, mask=c < C, other=0.0)
    tl.store(y_ptr + row, row_sums(x, x_ptr))


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
