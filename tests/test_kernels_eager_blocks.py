import pytest
import torch

from fused_loss.kernels import eager_blocks
from fused_loss.kernels.eager_blocks import (
    blocks,
    mean_of,
    number,
    rows_a_block,
    total,
    weight_over,
)


@pytest.mark.parametrize("n", [0, 1, 511, 32768, 32769, 100_001, 3_000_001])
def test_a_total_is_that_of_float64(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    wide = values.double()
    if n <= eager_blocks.LONG_SUM:
        assert total(values) == pytest.approx(wide.sum().item(), rel=1e-13, abs=1e-13)
    else:  # rows of 512 in float32 first
        off = torch.finfo(torch.float32).eps * wide.abs().sum().item()
        assert total(values) == pytest.approx(wide.sum().item(), abs=off)


def test_a_total_of_what_is_not_adjacent():
    values = torch.randn(3, 40000, generator=torch.Generator().manual_seed(0)).t()
    assert total(values) == pytest.approx(values.double().sum().item(), rel=1e-5)


def test_blocks_cover_each_row_once(monkeypatch):
    monkeypatch.setattr(eager_blocks, "BLOCK_ELEMENTS", 10)
    rows, weights = torch.arange(21.0).view(7, 3), torch.arange(7.0)
    found = list(blocks(rows, weights, 2.0, None, torch.tensor(3.0)))
    assert [len(block[0]) for block in found] == [3, 3, 1]
    assert torch.equal(torch.cat([block[0] for block in found]), rows)
    assert torch.equal(torch.cat([block[1] for block in found]), weights)
    assert all(block[2:4] == (2.0, None) and block[4].item() == 3.0 for block in found)


def test_a_block_with_a_buffer_of_its_own_is_smaller():
    logits = torch.empty(4096, 10_000, device="meta")
    share = logits.numel() // eager_blocks.SCRATCH_SHARE
    assert rows_a_block(logits) * 10_000 <= eager_blocks.BLOCK_ELEMENTS
    assert rows_a_block(logits, small=True) * 10_000 <= max(share, eager_blocks.SCRATCH_LEAST)
    assert rows_a_block(torch.empty(4, 4, device="meta"), small=True) == 4
    assert rows_a_block(torch.empty(2, 1 << 24, device="meta")) == 1


def test_a_denominator_of_nothing():
    assert weight_over(3.0, 0, None) == 0.0
    assert weight_over(3.0, 0.5, None) == 6.0
    assert mean_of(2.0, 0, -1.0) == -1.0
    assert mean_of(2.0, 4, -1.0) == 0.5
    zero = number(0.0, None, torch.float64, torch.device("cpu"))
    assert weight_over(3.0, zero, zero).isinf()
    assert number(None, torch.tensor(2.5), torch.float64, torch.device("cpu")) == 2.5
    assert number(None, None, torch.float64, torch.device("cpu")) is None
