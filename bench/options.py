"""How long the options of the loss take, beside the same written out in PyTorch's own operators.

Both are timed in turns, in one run: forward under no-grad, and forward and backward together.
Before the clock starts they must agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_loss import combined_loss
from fused_loss.bench.environment import environment
from fused_loss.bench.measure import Neighbours, Plan, Timing, alternate
from fused_loss.bench.option_cases import CASES, OptionCase, Problem, problem
from fused_loss.bench.programs import Program
from fused_loss.bench.stored import Ratio, ratio
from fused_loss.bench.wording import date, escape, machine, table, times, versions
from fused_loss.bench.written import add_out, write_table

ABOUT = "the time of the options on a CPU, beside the same in PyTorch's own operators"
SIZES = ((100, 2, 1), (1024, 20, 4), (4096, 1000, 4), (200_000, 10, 4))  # N, C, D
FILE, REPORT = "options.json", "options.md"
LEGEND = """\
PyTorch's time divided by ours, so above 1 ours is faster; ≈ where the spread (first to last decile
of the rounds) says neither. Forward is under no-grad."""

Row = dict[str, Any]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench options`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--each", type=float, default=0.3, metavar="S", help="seconds a cell (default: %(default)s)"
    )
    add_out(parser, f"{FILE} and {REPORT}")


def run(args: argparse.Namespace) -> int:
    """Measure, writing each row where that is asked for, and print the table.

    Returns:
        0.
    """
    results = {
        "complete": False,
        "command": f"fused-loss bench options --each {args.each:g}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(torch.device("cpu")),
    }
    measured: list[Row] = []
    for row in rows(args.each):
        measured.append(row)
        _keep(args.out, results, measured)
    print(_keep(args.out, results | {"complete": True}, measured))
    return 0


def _keep(out: Path | None, results: dict[str, Any], measured: list[Row]) -> str:
    """Write all so far, so that a run cut short is of use; the table."""
    text = markdown(results | {"rows": measured})
    write_table(out, (FILE, REPORT), results, measured, text)
    return text


def rows(
    seconds: float,
    cases: Sequence[OptionCase] = CASES,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
) -> Iterator[Row]:
    """A row a size, option and phase, with the samples of both.

    Raises:
        AssertionError: The two do not agree.
    """
    plan = Plan(None, seconds)
    for size in sizes:
        tensors = problem(*size)
        for case in cases:
            ours, theirs = _ours(case, tensors), case.composed
            torch.testing.assert_close(ours(tensors), theirs(tensors))
            for phase, step in (("forward", _forward), ("forward+backward", _training)):
                programs = {"eager": _program(theirs, step), "fused": _program(ours, step)}
                with Neighbours() as neighbours:
                    timings = alternate(programs, [tensors], torch.device("cpu"), plan)
                row: Row = {"size": list(size), "option": case.name, "phase": phase}
                row["neighbours"] = neighbours.cores
                yield row | {name: _samples(timing) for name, timing in timings.items()}


def _samples(timing: Timing) -> Row:
    return {"median_s": timing.median, "samples_s": list(timing.seconds)}


def _ours(case: OptionCase, tensors: Problem) -> Callable[[Problem], Tensor]:
    """The call, with its keywords made ready as a module keeps them."""
    given = {"y": tensors.y, "t": tensors.t} | case.keywords(tensors)
    y, t = given.pop("y"), given.pop("t")
    return lambda p: combined_loss(p.r, p.z, y, t, **given)


def _program(loss: Callable[[Problem], Tensor], step: Any) -> Program:
    return Program(partial(step, loss), torch.enable_grad)


def _forward(loss: Callable[[Problem], Tensor], p: Problem) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (loss(p),)


def _training(loss: Callable[[Problem], Tensor], p: Problem) -> tuple[Tensor, ...]:
    value = loss(p)
    return torch.autograd.grad(value if value.dim() == 0 else value.sum(), (p.r, p.z))


def speedup(row: Row) -> Ratio:
    """PyTorch's time as a multiple of ours."""
    return ratio(row["eager"], row["fused"])


def markdown(results: dict[str, Any]) -> str:
    """The table: an option a line, a size and phase a column."""
    measured = results["rows"]
    cells = {(row["option"], _column(row)): _cell(speedup(row)) for row in measured}
    columns = list(dict.fromkeys(map(_column, measured)))
    options = dict.fromkeys(row["option"] for row in measured)
    lines = [
        [escape(name), *(cells.get((name, column), "–") for column in columns)] for name in options
    ]
    complete = results.get("complete", True)  # older files have no such word
    parts = [
        f"# The time of each option: {machine(results)}",
        f"```\n{results['command']}\n```",
        f"{date(results)}, {versions(results)}, commit {results['environment']['commit']}.",
        *(
            []
            if complete
            else [f"**Cut short**: the run ended after {len(measured)} measurements."]
        ),
        LEGEND,
        table(["option", *columns], lines, "l" + "r" * len(columns)),
    ]
    return "\n\n".join(parts) + "\n"


def _column(row: Row) -> str:
    N, C, _ = row["size"]
    return f"{N}x{C}, {row['phase']}"


def _cell(compared: Ratio) -> str:
    return "≈ " * compared.unclear + times(compared.value)
