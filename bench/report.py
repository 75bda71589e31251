"""`fused-loss bench`: its arguments, its run, and `results.json`; the actions on stored results."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fused_loss.bench import accuracy, compare, render
from fused_loss.bench.cases import DTYPES, Case, Phase
from fused_loss.bench.environment import environment
from fused_loss.bench.measure import Plan
from fused_loss.bench.programs import select
from fused_loss.bench.providers import PROVIDERS
from fused_loss.bench.run import Record, run_case
from fused_loss.bench.stored import FILE, SCHEMA
from fused_loss.bench.suites import SUITES, custom

ACTIONS = {"compare": compare, "render": render, "accuracy": accuracy}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench`."""
    parser.description = (
        "Time the loss against PyTorch's eager and compiled ones and a copy of the same bytes. A "
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
        "--providers", metavar="A,B", help=f"some of {', '.join(PROVIDERS)} (default: all)"
    )
    parser.add_argument(
        "--phases",
        type=_phases,
        metavar="A,B",
        help=f"some of {', '.join(phase.value for phase in Phase)} (default: all)",
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
        help="of timing a case and phase (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write results.json, report.md and plots there"
    )
    actions = parser.add_subparsers(
        dest="action", metavar="[compare|render|accuracy]", title="other than the clock"
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
        cases, device = _cases(args), _device(args)
        providers = [PROVIDERS[name] for name in select(args.providers, PROVIDERS)]
    except ValueError as error:
        print(f"fused-loss bench: {error}", file=sys.stderr)
        return 2
    absent = {p.name: reason for p in providers if (reason := p.available(device))}
    providers = [provider for provider in providers if provider.name not in absent]
    results = Results(args, device, absent)
    console = Console()
    plan = Plan(args.rounds, args.seconds)
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(cases))
        for done, case in enumerate(cases):

            def tell(share: float, doing: str, done: int = done, case: Case = case) -> None:
                bar.update(task, completed=done + share, description=f"{case.name}: {doing}")

            for record in run_case(case, providers, device, plan, tell, args.phases):
                results.add(record)
    results.finish()
    show(console, results.records, absent, results.head["environment"])
    if args.out:
        render.show(args.out, console)
    return int(any(row.disgrace for record in results.records for row in record.rows))


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
        head = json.dumps(self.head, indent=1).removesuffix("\n}")
        records = ",\n".join(json.dumps(record.as_json()) for record in self.records)
        unfinished = self.folder / f"{FILE}.part"
        unfinished.write_text(f'{head},\n "records": [\n{records}\n]}}\n', encoding="utf-8")
        os.replace(unfinished, self.folder / FILE)


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
    return shlex.join(words)


def _phases(text: str) -> tuple[Phase, ...]:
    try:
        return tuple(Phase(part.strip()) for part in text.split(","))
    except ValueError as error:
        known = ", ".join(phase.value for phase in Phase)
        raise argparse.ArgumentTypeError(f"{error}: there are {known}") from error


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


def _cases(args: argparse.Namespace) -> Sequence[Case]:
    if args.shape:
        return (custom(args.shape, args.dtype or "float32"),)
    if args.dtype:
        raise ValueError("--dtype goes with --shape; the cases of a suite have their own")
    return SUITES[args.suite]


def _device(args: argparse.Namespace) -> torch.device:
    default = {"cpu": "cpu", "gpu": "cuda"}.get("" if args.shape else args.suite)
    name = args.device or default or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device was found: use --suite cpu or --device cpu")
    return (
        torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
    )
