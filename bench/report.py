"""`fused-loss bench`: its arguments, its run, and `results.json`; the actions on stored results."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fused_loss.bench import accuracy, compare, compiled, options, render
from fused_loss.bench.cases import DTYPES, Case, Phase
from fused_loss.bench.environment import environment
from fused_loss.bench.kinds import INFERENCE, LOSS, kind_of
from fused_loss.bench.measure import Plan
from fused_loss.bench.models import ModelCase
from fused_loss.bench.programs import Provider, select
from fused_loss.bench.run import Record, chosen, run_case
from fused_loss.bench.stored import FILE, SCHEMA
from fused_loss.bench.suites import SUITES, custom, suite
from fused_loss.bench.written import add_out, write_json

ACTIONS = {
    "compare": compare,
    "render": render,
    "accuracy": accuracy,
    "options": options,
    "compiled": compiled,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench`."""
    parser.description = (
        "Time the loss against PyTorch's eager and compiled ones and a copy of the same bytes; or "
        "(--suite onnx) an exported model against eager and compiled PyTorch, on the CPU. A "
        "provider that does not match a float64 reference is named, and not timed."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--suite", choices=list(SUITES), default="smoke", help="the cases (default: smoke)"
    )
    what.add_argument(
        "--shape", metavar="N,C,D", help="your own: samples, classes, regression outputs"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), help="of both heads, with --shape (default: float32)"
    )
    parser.add_argument(
        "--providers",
        metavar="A,B",
        help=f"some of {', '.join(LOSS.providers)}; in the onnx suite some of "
        f"{', '.join(INFERENCE.providers)} (default: all)",
    )
    parser.add_argument(
        "--phases",
        type=_phases,
        metavar="A,B",
        help=f"some of {_listed(Phase)} (default: all)",
    )
    parser.add_argument(
        "--device", help="cpu or cuda (default: as the suite; a GPU where there is one)"
    )
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--rounds", type=_positive, help="samples of each provider on each case")
    how_long.add_argument(
        "--seconds",
        type=_seconds,
        default=Plan.seconds,
        metavar="S",
        help="of timing a case and phase (default: %(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=_seconds,
        metavar="S",
        help="begin no measurement after so many seconds; the report says that it was cut short",
    )
    add_out(parser, "results.json, report.md and plots")
    actions = parser.add_subparsers(
        dest="action", metavar=f"[{'|'.join(ACTIONS)}]", title="other than the clock"
    )
    for name, action in ACTIONS.items():
        action.configure(actions.add_parser(name, help=action.ABOUT, description=action.ABOUT))


def run(args: argparse.Namespace) -> int:
    """Measure and report, or do what the action asks of stored results.

    Returns:
        0; 1 where a provider of this package is wrong or fails; 2 for arguments that make no sense.

    Raises:
        ModuleNotFoundError: rich, of the extra `bench`, is not installed.
    """
    if args.action:
        return ACTIONS[args.action].run(args)
    from rich.console import Console  # the arguments must be known without it

    from fused_loss.bench.tables import progress_bar, show

    try:
        device = _device(args)
        cases = _cases(args, device)
        teams = _teams(cases, args.providers, device)
    except ValueError as error:
        print(f"fused-loss bench: {error}", file=sys.stderr)
        return 2
    cases = [case for case in cases if kind_of(case).name in teams]
    results = Results(
        args, device, {k: v for team in teams.values() for k, v in team.absent.items()}
    )
    console = Console()
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))

        def tell(done: float, doing: str) -> None:
            bar.update(task, completed=done, description=doing)

        for record in _records(args, cases, teams, tell):
            results.add(record)
    if len(results.records) == sum(len(chosen(case, args.phases)) for case in cases):
        results.finish()
    show(console, results.records, results.head["absent"], results.head["environment"])
    if args.out:
        render.show(args.out, console)
    return int(any(row.disgrace for record in results.records for row in record.rows))


@dataclass(frozen=True)
class Team:
    """The providers of a kind of cases that were asked for.

    Attributes:
        device: Where they run.
        providers: Those that can.
        absent: Why the others cannot, by name.
    """

    device: torch.device
    providers: list[Provider]
    absent: dict[str, str]


def _teams(
    cases: Sequence[Case | ModelCase], names: str | None, device: torch.device
) -> dict[str, Team]:
    """By the name of the kind, for each that has one of the providers."""
    kinds = [kind for kind in (LOSS, INFERENCE) if any(kind_of(case) is kind for case in cases)]
    wanted = select(names, list(dict.fromkeys(name for kind in kinds for name in kind.providers)))
    teams = {}
    for kind in kinds:
        where = torch.device(kind.on) if kind.on else device
        asked = [kind.providers[name] for name in wanted if name in kind.providers]
        absent = {p.name: reason for p in asked if (reason := p.available(where))}
        absent |= kind.left_out if names is None else {}
        if asked:
            there = [provider for provider in asked if provider.name not in absent]
            teams[kind.name] = Team(where, there, absent)
    return teams


def _records(
    args: argparse.Namespace,
    cases: Sequence[Case | ModelCase],
    teams: dict[str, Team],
    tell: Callable[[float, str], Any],
) -> Iterator[Record]:
    """Measure case by case, until `--limit`."""
    plan, start = Plan(args.rounds, args.seconds), time.monotonic()
    for done, case in enumerate(cases):
        team = teams[kind_of(case).name]

        def inner(share: float, doing: str, done: int = done, name: str = case.name) -> None:
            tell(done + share, f"{name}: {doing}")

        for record in run_case(case, team.providers, team.device, plan, inner, args.phases):
            yield record
            if args.limit and time.monotonic() - start > args.limit:
                return


class Results:
    """The records of a run; rewritten to `--out` after each, so that a run cut short is of use."""

    def __init__(
        self, args: argparse.Namespace, device: torch.device, absent: dict[str, str]
    ) -> None:
        """Begin, with what is known before the first measurement."""
        self.records: list[Record] = []
        self.folder: Path | None = args.out
        self.head: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": False,
            "command": command(args),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(device),
            "absent": absent,
        }

    def add(self, record: Record) -> None:
        """Keep a record and write all so far."""
        self.records.append(record)
        self._write()

    def finish(self) -> None:
        """Mark the run as complete."""
        self.head["complete"] = True
        self._write()

    def _write(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        records = [record.as_json() for record in self.records]
        write_json(self.folder / FILE, self.head, "records", records)


def command(args: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    words = ["fused-loss", "bench"]
    words += ["--shape", args.shape] if args.shape else ["--suite", args.suite]
    for name in ("dtype", "providers", "device", "rounds"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    if args.phases is not None:
        words += ["--phases", ",".join(phase.value for phase in args.phases)]
    if args.rounds is None:
        words += ["--seconds", f"{args.seconds:g}"]
    if args.limit:
        words += ["--limit", f"{args.limit:g}"]
    return shlex.join(words)


def _phases(text: str) -> tuple[Phase, ...]:
    try:
        return tuple(Phase(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: there are {_listed(Phase)}") from error


def _listed(phases: Iterable[Phase]) -> str:
    return ", ".join(phase.value for phase in phases)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def _cases(args: argparse.Namespace, device: torch.device) -> Sequence[Case | ModelCase]:
    if args.dtype and not args.shape:
        raise ValueError("--dtype goes with --shape; the cases of a suite have their own")
    if args.shape:
        cases: Sequence[Case | ModelCase] = (custom(args.shape, args.dtype or "float32"),)
    else:
        cases = suite(args.suite, device)
    having = [case for case in cases if chosen(case, args.phases)]
    if not having:
        there = dict.fromkeys(phase for case in cases for phase in case.phases)
        raise ValueError(f"--phases names none that is measured here: {_listed(there)}")
    return having


def _device(args: argparse.Namespace) -> torch.device:
    default = {"cpu": "cpu", "onnx": "cpu", "gpu": "cuda"}.get("" if args.shape else args.suite)
    name = args.device or default or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and args.suite == "onnx" and not args.shape:
        raise ValueError("the onnx suite runs on the CPU: leave out --device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found: use --suite cpu or --device cpu")
    return (
        torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
    )
