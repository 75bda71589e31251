"""What the closed form holds beside the tensors of a call, at its most."""

import pytest
import torch

import fused_loss
from fused_loss import combined_loss
from fused_loss.bench.footprint import footprint
from fused_loss.kernels import eager_tiles

# Tiles of 2048 elements: of these shapes as small a part as the real ones of the largest logits.
SHAPES = ((1, 16, 64, 64), (1, 16, 1, 4096), (8, 13, 24, 24), (8192, 8), (64, 1024))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("way", "most"), [("training", 1.3), ("in place", 0.3), ("no gradient", 0.3)]
)
def test_only_the_gradient_is_as_large_as_the_logits(way, most, shape, dtype, monkeypatch):
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 2048)
    monkeypatch.setattr(eager_tiles, "SCRATCH_LEAST", 2048)
    leaf = torch.randn(shape).to(dtype).requires_grad_(way != "no gradient")
    logits = leaf * 1 if way == "in place" else leaf
    r = torch.zeros(shape[0], 1)
    t = torch.randint(shape[1], (shape[0], *shape[2:]))

    def step(_):
        with fused_loss.backend("eager"):
            loss = combined_loss(r, logits, r, t, inplace_gradient=way == "in place")
        return torch.autograd.grad(loss, logits) if loss.requires_grad else (loss,)

    peak = footprint(step, None, torch.device("cpu")).peak_bytes
    of_positions = 8 * 8 * t.numel() if len(shape) == 2 and shape[1] < 16 else 0  # r's share too
    assert peak <= most * leaf.numel() * leaf.itemsize + of_positions


def test_a_tile_too_large_is_seen(monkeypatch):
    monkeypatch.setattr(eager_tiles, "BLOCK_ELEMENTS", 1 << 30)
    monkeypatch.setattr(eager_tiles, "SCRATCH_LEAST", 1 << 30)
    z, r = torch.randn(64, 1024), torch.zeros(64, 1)

    def step(_):
        with fused_loss.backend("eager"):
            return (combined_loss(r, z, r, torch.zeros(64, dtype=torch.int64)),)

    assert footprint(step, None, torch.device("cpu")).peak_bytes >= z.numel() * 4
