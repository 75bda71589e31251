"""The page of the examples: it lists them all, and its recipe gives the whole batch's gradient."""

import ast
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_loss import DualHead, combined_loss

FOLDER = Path(__file__).parents[1] / "examples"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
N, SIZES = 9, (4, 2, 3)


def test_every_example_is_listed():
    runnable = {
        path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    }
    assert set(re.findall(r"^\| `python examples/(\w+\.py)`", PAGE, re.MULTILINE)) == runnable
    assert set(re.findall(r"\w+\.py", PAGE)) == {path.name for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("block", BLOCKS)
def test_code_is_python(block: str):
    ast.parse(textwrap.dedent(block))


def test_the_recipe_gives_the_gradient_of_the_whole_batch():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, N, 4, generator=random, dtype=torch.float64)
    t = torch.randint(3, (N,), generator=random)
    y, t = y.masked_fill(y > 1, torch.nan), t.masked_fill(torch.arange(N) > 6, -100)
    model = DualHead(nn.Identity(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    class_weight = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    step = list(zip(*(tensor.split(SIZES) for tensor in (x, y, t)), strict=True))
    assert any(y.isnan().any() for _, y, _ in step)
    given = {
        "model": model,
        "loader": [step],
        "class_weight": class_weight,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
    }
    exec(BLOCKS[0], given)
    found = [p.grad for p in model.parameters()]
    loss = combined_loss(*model(x), y, t, nan_targets="ignore", class_weight=class_weight)
    for ours, truth in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        # N rows, in another order.
        bound = N * torch.finfo(torch.float64).eps * truth.abs().max()
        assert (ours - truth).abs().max() <= bound
