"""`fused-loss demo`: train on the Palmer penguins, export, verify, predict, show."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fused_loss.demo_data import load, split
from fused_loss.demo_files import (
    ARRAYS,
    MODEL,
    NAMES,
    TABLE,
    WEIGHTS,
    predict,
    staged,
    write_figure,
    write_model,
    write_rows,
)
from fused_loss.demo_model import ALPHA, EPOCHS, Epoch, PenguinModel, Scores, score, train
from fused_loss.export import VerificationReport

OUT = Path("fused-loss-demo")
FACTORY = f"{PenguinModel.__module__}:{PenguinModel.__name__}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("--out", type=Path, default=OUT, metavar="DIR", help=f"folder of the results ({OUT})")
    add("--seed", type=_whole(0), default=0, metavar="N", help="of the split and the training (0)")
    add("--epochs", type=_whole(1), default=EPOCHS, metavar="N", help=f"of training ({EPOCHS})")
    add(
        "--alpha",
        type=_share,
        default=ALPHA,
        metavar="A",
        help=f"weight of the mass, 0 to 1; the species gets the rest ({ALPHA})",
    )


def run(args: argparse.Namespace) -> int:
    """Train, export, verify, predict the held-out birds; 0 once everything is in DIR.

    Raises:
        UsageError: DIR is something else than a folder.
        OnnxExportError, OnnxVerificationError, OSError: Nothing in DIR has changed.
    """
    console = Console()
    parts = split(load(), args.seed)
    learned, held_out = (len(part.mass) for part in parts)
    console.print(f"Palmer penguins: {learned} to learn from, {held_out} held out")
    with staged(args.out) as folder:
        with _bar(console, args.epochs) as on_epoch:
            options = {"seed": args.seed, "epochs": args.epochs, "alpha": args.alpha}
            model, history = train(*parts, **options, on_epoch=on_epoch)
        with console.status("exporting and verifying"):
            report = write_model(folder, model, parts.train)
        outputs = [predict(folder, part) for part in parts]
        write_rows(folder, parts.held_out)
        write_figure(folder, history, outputs[1], parts.held_out)
    scores = (score(args.alpha, model.mass, *each) for each in zip(outputs, parts, strict=True))
    console.print(_table(Epoch(*scores), report))
    for line in (report.summary(), f"{args.out} holds {', '.join(NAMES)}", *_next(args.out)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return 0


@contextmanager
def _bar(console: Console, epochs: int) -> Iterator[Callable[[Epoch], None]]:
    """Gives what to call after each epoch."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=epochs)

        def on_epoch(epoch: Epoch) -> None:
            text = f"loss {epoch.train.loss:.4f}, held-out {epoch.held_out.loss:.4f}"
            progress.update(task, advance=1, description=text)

        yield on_epoch


def _table(scores: Epoch, report: VerificationReport) -> Table:
    version = report.versions["onnxruntime"]
    table = Table(caption=f"predicted from {MODEL} by onnxruntime {version}")
    table.add_column("")
    table.add_column("training", justify="right")
    table.add_column("held-out", justify="right")
    rows: tuple[tuple[str, Callable[[Scores], float], str], ...] = (
        ("accuracy, species", lambda s: s.accuracy, ".3f"),
        ("RMSE, body mass (g)", lambda s: s.rmse, ".0f"),
        ("loss", lambda s: s.loss, ".4f"),
        ("  regression: squared error (variances)", lambda s: s.regression, ".4f"),
        ("  classification: cross-entropy (nats)", lambda s: s.classification, ".4f"),
    )
    for name, value, style in rows:
        table.add_row(name, *(format(value(part), style) for part in scores))
    return table


def _next(out: Path) -> Iterator[str]:
    """Commands that go on from here."""
    checkpoint = ["--model", FACTORY, "--checkpoint", out / WEIGHTS]
    yield "Next:"
    for command in (
        ["verify", out / MODEL, *checkpoint, "--verify-data", out / ARRAYS],
        ["predict", out / MODEL, out / TABLE, "-o", out / "predictions.csv"],
    ):
        yield "  " + shlex.join(map(str, [*_program(), *command]))


def _program() -> list[str]:
    """How this program was called; `make` runs it from a folder that is not on the PATH."""
    script = Path(sys.argv[0])
    if script.stem != "fused-loss" or not os.access(script, os.X_OK):
        return [sys.executable, "-m", "fused_loss"]
    found = shutil.which(script.stem)
    return [script.stem if found and script.samefile(found) else str(script)]


def _whole(low: int, high: int = 2**32 - 1) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        number = int(text) if text.isdecimal() else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return number

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share
