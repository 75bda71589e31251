"""The files beside a `results.json`: the report and its plots, from it alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fused_loss.bench.markdown import report
from fused_loss.bench.stored import FILE, ResultsError, load

if TYPE_CHECKING:
    from rich.console import Console

ABOUT = "write report.md and the plots beside a results.json, such as that of a run cut short"
REPORT = "report.md"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench render`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="that holds the results.json")


def run(args: argparse.Namespace) -> int:
    """Render, and name what was written.

    Returns:
        0; 2 where there are no results.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the report is written all the same.
    """
    try:
        for path in render(args.folder):
            print(f"wrote {path}")
    except ResultsError as error:
        print(f"fused-loss bench render: {error}", file=sys.stderr)
        return 2
    return 0


def render(folder: Path) -> Iterator[Path]:
    """Write the report, then the plots; each path is given as soon as its file is there.

    Raises:
        ResultsError: The folder holds no results.
        ModuleNotFoundError: matplotlib is not installed; the report is there, without plots.
    """
    results = load(folder)
    path = folder / REPORT
    path.write_text(report(results), encoding="utf-8")
    yield path
    from fused_loss.bench.plots import draw

    drawn = draw(results, folder)
    path.write_text(report(results, [plot.name for plot in drawn]), encoding="utf-8")
    yield from drawn


def show(folder: Path, console: Console) -> None:
    """Render a run that has just ended; without matplotlib it is none the worse."""
    written = [folder / FILE]
    try:
        for path in render(folder):
            written.append(path)
    except ModuleNotFoundError as error:
        console.print(
            f"no plots ({error}): pip install 'fused-loss[bench]', then "
            f"fused-loss bench render {folder}",
            highlight=False,
            markup=False,
        )
    console.print(f"wrote {', '.join(map(str, written))}", highlight=False, markup=False)
