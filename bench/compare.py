"""`fused-loss bench compare A B`: its arguments and its tables; the rule is that of `changes`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fused_loss.bench import changes
from fused_loss.bench.changes import THRESHOLD, Change, Comparison, Key, compare
from fused_loss.bench.stored import ResultsError, load
from fused_loss.bench.wording import machine

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ABOUT = "list what got slower between two results files; exit 1 if this package did"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench compare`."""
    parser.description = changes.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("before", type=Path, metavar="A.json", help="or the folder that holds it")
    parser.add_argument("after", type=Path, metavar="B.json", help="the same")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default=THRESHOLD,
        metavar="X",
        help="the least factor that counts, beyond the spread (default: %(default)s)",
    )
    parser.add_argument(
        "--to",
        metavar="PROVIDER",
        help="whose time in the same run is the only unit, such as eager (default: a change must "
        "show in the time of every provider but this package's)",
    )


def run(args: argparse.Namespace) -> int:
    """Compare two files and print what changed.

    Returns:
        0; 1 for a regression of this package; 2 where a file cannot be read or nothing is common.

    Raises:
        ModuleNotFoundError: rich, of the extra `bench`, is not installed.
    """
    from rich.console import Console

    try:
        runs = load(args.before), load(args.after)
        found = compare(*runs, args.threshold, args.to)
    except ResultsError as error:
        print(f"fused-loss bench compare: {error}", file=sys.stderr)
        return 2
    show(Console(), runs, found, args)
    return int(bool(found.regressions))


def show(
    console: Console,
    runs: Sequence[dict[str, Any]],
    found: Comparison,
    args: argparse.Namespace,
) -> None:
    """Print both runs, what got slower and faster, and what only one of them has."""
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    for name, results in zip("AB", runs, strict=True):
        say(f"{name}: {_run_line(results)}")
    for title, listed in (("slower", found.slower), ("faster", found.faster)):
        if listed:
            console.print(_table(f"{title} in B", listed))
    for key, reason in found.broken:
        where = f"{key.provider} on {key.case}, {key.phase}"
        say(f"had a time in A: {where}: {reason}", style="bold red")
    for name, keys in zip("AB", found.only_in, strict=True):
        for line in _grouped(keys):
            say(f"only in {name}: {line}")
    if found.crowded:
        say(
            f"{found.crowded} measurements not judged: other processes wanted the same cores in A "
            "or in B; repeat them on a quiet machine"
        )
    if found.without_unit:
        say(
            f"{found.without_unit} measurements of ours have no {args.to or 'other provider'} "
            "beside them"
        )
    regressions = len(found.regressions)
    say(
        f"{len(found.slower)} slower, {len(found.faster)} faster, {found.unchanged} unchanged: by "
        f"more than {args.threshold:g}× and beyond the spread of both runs; "
        f"{regressions or 'no'} regression{'s' * (regressions != 1)} of this package"
    )


def _run_line(results: dict[str, Any]) -> str:
    environment = results["environment"]
    facts = [
        machine(results),
        f"{environment['threads']['torch']} CPU threads",
        f"torch {environment['packages']['torch']}",
        f"commit {environment['commit'] or 'unknown'}",
        results["started"],
    ]
    crowded = sum(record["crowded"] for record in results["records"])
    facts += ["cut short"] * (not results["complete"])
    facts += [f"{crowded} of {len(results['records'])} measurements crowded"] * bool(crowded)
    return "; ".join(facts)


def _table(title: str, listed: Sequence[Change]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("provider on case, phase, in units of", overflow="fold")
    for heading in ("A / unit", "B / unit", "B / A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in listed:
        ratios = change.before, change.after
        cells = (f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in ratios)
        key = change.key
        what = f"{key.provider} on {key.case}, {key.phase}, {change.unit}"
        table.add_row(*map(escape, (what, *cells, f"{change.factor:.2f}×")))
    return table


def _grouped(keys: Sequence[Key]) -> list[str]:
    """A line for all cases that lack the same providers in the same phases."""
    phases: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        phases.setdefault((key.case, key.provider), []).append(key.phase)
    providers: dict[str, dict[str, list[str]]] = {}
    for (case, provider), found in phases.items():
        providers.setdefault(case, {}).setdefault(", ".join(found), []).append(provider)
    cases: dict[str, list[str]] = {}
    for case, groups in providers.items():
        what = "; ".join(f"{', '.join(names)} ({where})" for where, names in groups.items())
        cases.setdefault(what, []).append(case)
    return [f"{what} on {', '.join(names)}" for what, names in cases.items()]


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a factor of at least 1, got {text!r}")
    return value
