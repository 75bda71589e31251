import math

import pytest
import torch

from fused_loss.kernels import eager_tiles
from fused_loss.kernels.eager_tiles import (
    blocks,
    cut,
    fits_a_block,
    move,
    short_rows,
    tile_elements,
    tiles,
    view_of,
)
from fused_loss.spec import LossTensors


@pytest.mark.parametrize("elements", [1, 5, 12, 40, 10**6])
@pytest.mark.parametrize(
    "shape", [(7, 3), (2, 3, 5), (3, 2, 5, 4), (1, 4, 9), (2, 3, 1, 7), (0, 3), (2, 3, 0)]
)
def test_tiles_cover_each_element_once(shape, elements):
    size = math.prod(shape)
    logits = torch.arange(float(size)).view(shape)
    parts = [cut(logits, tile, 2) for tile in tiles(shape, elements)]
    found = torch.cat([part.flatten() for part in parts])
    assert torch.equal(found.sort().values, torch.arange(float(size)))
    assert all(part.shape[1:2] == logits.shape[1:2] for part in parts)  # whole positions
    smallest = (
        math.prod(shape[1:]) // max(shape[2:], default=1) if size else 1
    )  # one of the longest
    assert max(part.numel() for part in parts) <= max(elements, smallest)
    assert parts[0].numel() == max(part.numel() for part in parts)


def test_what_a_tile_cuts():
    tile = tiles((2, 3, 5), 6)[-1]
    assert tile == (slice(1, 2), slice(4, 6), 0)
    positions = torch.arange(10.0).view(2, 5)
    assert cut(positions, tile).tolist() == [[9.0]]
    assert cut(torch.tensor([[3.0], [4.0]]), tile).tolist() == [[4.0]]  # a value a sample
    assert cut(2.0, tile) == 2.0
    assert cut(None, tile) is None
    assert cut(torch.tensor(7.0), tile).item() == 7.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("classes", [1, 2, 15, 40])
def test_rows_move_to_columns_and_back(classes, dtype):
    rows = torch.randn(50, classes, generator=torch.Generator().manual_seed(0)).to(dtype)
    there = torch.empty(1, classes, 50, dtype=torch.float32 if dtype != torch.bool else dtype)
    assert move(rows.t()[None], there) is there
    assert torch.equal(there, rows.t()[None].to(there.dtype))
    back = torch.empty_like(rows)
    move(there, back.t()[None])
    assert torch.equal(back, rows)


def test_which_rows_are_short():
    vector = eager_tiles.VECTOR_BYTES
    rows = eager_tiles.MANY_ROWS
    most = vector // 4 - 1
    assert short_rows(torch.empty(rows, most), torch.float32)
    assert not short_rows(torch.empty(rows, most + 1), torch.float32)
    assert not short_rows(torch.empty(rows, most), torch.float64)
    assert not short_rows(torch.empty(rows - 1, most), torch.float32)
    assert not short_rows(torch.empty(rows, 1), torch.float32)
    assert not short_rows(torch.empty(rows, most, 2), torch.float32)
    assert not short_rows(torch.empty(rows, most, device="meta"), torch.float32)


def test_the_view_of_turned_rows():
    z, mask, t = torch.randn(6, 3), torch.rand(6, 3) < 0.5, torch.arange(6) % 3
    tensors = LossTensors(None, z, None, t, class_mask=mask, classification_weight=torch.ones(6))
    view = view_of(tensors, z, turned=True)
    assert [None if v is None else tuple(v.shape) for v in view] == [
        (1, 3, 6),
        (1, 3, 6),
        (1, 3, 6),
        (1, 6),
        (1, 6),
    ]
    assert torch.equal(view.mask[0].t(), mask)
    soft = view_of(tensors._replace(classification_targets=z), None, turned=True)
    assert torch.equal(soft.targets[0], z.t())
    assert view_of(tensors, None, turned=False).logits is z
    single = view_of(LossTensors(None, z[0], None, t[0]), None, turned=False)
    assert (single.logits.shape, single.targets.shape) == ((1, 3), (1,))


def test_blocks_cover_each_row_once(monkeypatch):
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 20)
    rows, weights = torch.arange(21.0).view(7, 3), torch.arange(7.0)
    found = list(blocks(rows, weights, 2.0, None, torch.tensor(3.0)))
    assert [len(block[0]) for block in found] == [3, 3, 1]
    assert torch.equal(torch.cat([block[0] for block in found]), rows)
    assert torch.equal(torch.cat([block[1] for block in found]), weights)
    assert all(block[2:4] == (2.0, None) and block[4].item() == 3.0 for block in found)


def test_a_tile_with_a_buffer_of_its_own_is_smaller():
    numel = 4096 * 10_000
    assert tile_elements(numel, small=False) == eager_tiles.BLOCK_ELEMENTS
    assert tile_elements(numel, small=True) <= max(
        numel // eager_tiles.SCRATCH_SHARE, eager_tiles.SCRATCH_LEAST
    )
    assert tile_elements(1 << 40, small=True) == eager_tiles.BLOCK_ELEMENTS
    assert tile_elements(1, small=True) == eager_tiles.SCRATCH_LEAST


def test_what_is_one_block():
    most = eager_tiles.SCRATCH_LEAST // 2
    assert fits_a_block(torch.empty(most, device="meta"))
    assert not fits_a_block(torch.empty(most + 1, device="meta"))
    long = torch.empty(1, most + 1, device="meta")
    assert not fits_a_block(long)
    assert [block[0].shape for block in blocks(long)] == [long.shape]
    assert fits_a_block(torch.empty((), device="meta"))
