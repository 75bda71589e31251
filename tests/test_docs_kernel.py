"""docs/kernel.md: its block computes the loss, its names exist, its figures have their sources."""

import json
import re
from pathlib import Path

import pytest
import torch

import fused_loss
from fused_loss import combined_loss
from fused_loss.kernels import triton_table
from fused_loss.kernels.triton_math import VECTOR

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "kernel.md").read_text(encoding="utf-8")
RESULTS = ROOT / "bench" / "results"
COMPILED = (RESULTS / "sm90-compiled" / "compiled.md").read_text("utf-8")
HOST = json.loads((RESULTS / "epyc-2-cores" / "host.json").read_text("utf-8"))
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("fused_loss", "kernels", "bench")
    for path in (ROOT / folder).glob("*.py")
)
N, C, D = 6, 5, 3


def by_hand():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(block, names)
    return names["by_hand"]


OPTIONS = {
    "plain": {},
    "smoothed": {"eps": 0.25},
    "class weights": {"w": True},
    "a mask": {"possible": True, "eps": 0.25},
    "weights": {"u": True, "v": True},
    "everything": {"w": True, "possible": True, "eps": 0.25, "u": True, "v": True},
}


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_block_computes_the_loss_and_both_gradients(options, soft):
    """In float64, with an ignored position, a missing target, and an impossible one."""
    random = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(shape, generator=random, dtype=torch.float64) + 0.25

    r, y, z = uniform(N, D), uniform(N, D), 4 * uniform(N, C)
    y[0, 0] = torch.nan
    t = uniform(N, C) if soft else torch.tensor([0, 1, 2, -100, 4, 0])
    given = {"w": uniform(C), "u": uniform(N), "v": uniform(N, D)}
    given["possible"] = torch.rand(N, C, generator=random) < 0.7
    given["possible"].scatter_(1, (t.argmax(1) if soft else t.clamp(min=0))[:, None], True)
    given["possible"][0] = False  # no class at all: +inf
    given = {name: given[name] for name in options if options[name] is True}
    found = by_hand()(r, z, y, t, 0.3, 0.7, **options | given)

    names = {"w": "class_weight", "u": "classification_weight", "v": "regression_weight"}
    names |= {"possible": "class_mask", "eps": "label_smoothing"}
    keywords = {names[name]: value for name, value in (options | given).items()}
    r.requires_grad_(), z.requires_grad_()
    with fused_loss.backend("reference"):
        loss = combined_loss(r, z, y, t, 0.3, nan_targets="ignore", **keywords)
    gradients = torch.autograd.grad(loss, (r, z))
    for one, other in zip(found, (loss.detach(), *gradients), strict=True):
        torch.testing.assert_close(one, other, rtol=64 * torch.finfo(torch.float64).eps, atol=1e-14)


def test_the_files_that_it_names_exist():
    named = set(re.findall(r"`((?:kernels|tests|docs|bench)/[\w./]+)`", PAGE))
    named |= {f"docs/{link}" for link in re.findall(r"\]\(([\w./-]+)\)", PAGE)}
    assert len(named) >= 13
    for path in named:
        assert (ROOT / path).exists(), path


def test_every_kernel_file_is_named():
    for path in (ROOT / "kernels").glob("triton_*.py"):
        assert f"`kernels/{path.name}`" in PAGE


def test_the_names_that_it_uses_exist():
    named = set(re.findall(r"`([A-Za-z_]\w{2,})`", PAGE))
    assert len(named) >= 30
    for name in named - {"own", "counted", "number", "tensor"}:
        assert re.search(rf"\b{name}\b", SOURCES), name


def test_the_tuning_numbers_are_those_of_the_table():
    found = re.findall(r"`([A-Z_]{4,})`\s*=\s*(\d+)", PAGE)
    assert {name for name, _ in found} >= {"BLOCK_MAX", "SPLIT_FROM", "COUNT_BOUND", "TILE"}
    for name, number in found:
        assert getattr(triton_table, name, VECTOR.value) == int(number), name


def test_the_tilings_are_those_of_the_table():
    rows = re.findall(r"^\| (\d+) \| (\d+) × (\d+) \| (\d+) \| (yes|no) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 9
    for classes, *shown in rows:
        tile = triton_table.tile(int(classes), True, 1, 4)
        kept = "yes" if tile.one_block else "no"
        assert shown == [*map(str, (tile.rows, tile.block_c, tile.warps)), kept], classes


def test_the_compiled_figures_are_those_of_the_committed_table():
    """Line by line: copy them anew where `fused-loss bench compiled` has been run again."""
    section = PAGE.partition("## What the compiler made of it")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) >= 10
    for line in lines:
        assert line in COMPILED.splitlines(), line
    assert COMPILED.rstrip().splitlines()[-1].startswith("0 of ")  # that none spills is said


def test_it_says_that_nothing_was_measured():
    from fused_loss.kernels.dispatch import TRITON_PROVEN_ON_HARDWARE

    assert ("Nothing on this page has been measured" in PAGE) is not TRITON_PROVEN_ON_HARDWARE


def test_the_reach_quotes_the_committed_table_and_says_what_was_not_measured():
    """Registers, programs that stay, widths, instructions and bytes, of each family."""
    committed = {}
    for line in COMPILED.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 15:
            committed[cells[0], cells[1]] = cells
    section = PAGE.partition("## The reach")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines()]
    rows = [cells for cells in rows if len(cells) == 10 and cells[1:3] != ["shown by", "kernel"]][
        1:
    ]
    assert len(rows) >= 30
    for _, family, kernel, registers, stay, read, instructions, *rest in rows:
        cells = committed[family, kernel]
        warps = re.findall(r"(\d+) warps", cells[3])[0]
        outputs = family.startswith("regression-heavy")
        assert registers == cells[4]
        assert stay == f"{cells[6]} × {warps}"
        assert (read, instructions) == (
            (cells[13], cells[14]) if outputs else (cells[7], cells[10])
        )
        assert outputs or rest[:2] == cells[11:13]
        assert rest[-1] == "not measured"


def test_the_time_of_the_host_is_the_committed_one():
    (shown,) = re.findall(r"of the tutorial's shape takes ([\d.]+) µs of CPU time", PAGE)
    found = [
        row["microseconds"]
        for row in HOST["rows"]
        if (row["shape"], row["part"]) == ("tutorial", "step")
    ]
    assert [shown] == [f"{step:.1f}" for step in found]
    assert HOST["environment"]["device"]["name"] in PAGE
