"""The options that `fused-loss export` and `fused-loss verify` share, and what they name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fused_loss.export.arrays import load_rows, model_dtype
from fused_loss.export.errors import OnnxVerificationError, UsageError, as_usage
from fused_loss.export.files import replacing
from fused_loss.export.heads import as_roles
from fused_loss.export.options import options
from fused_loss.export.report import VerificationReport
from fused_loss.export.scaling import restored
from fused_loss.export.signature import (
    OUTPUT_NAMES,
    VERIFY_BATCHES,
    Signature,
    Tensors,
    batch_sizes,
)
from fused_loss.export.sources import load_checkpoint, load_model

EXAMPLE_ROWS = 64


class Named(NamedTuple):
    """What the command line names, loaded; `keywords` are common to exporting and verifying."""

    model: nn.Module
    example: Tensors | None
    data: Tensors | None
    keywords: dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, its inputs, and how it is verified."""
    add = parser.add_argument
    add("--model", required=True, metavar="PKG.MOD:FACTORY", help="what makes the nn.Module")
    add("--checkpoint", type=Path, metavar="W", help="state dict: .safetensors, weights-only .pt")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--input-shape", type=shape, metavar="3,8,8", help="of one sample: standard normal inputs"
    )
    rows.add_argument("--example", type=Path, metavar="X", help="real rows: .npy, or .npz by name")
    add("--output-names", type=words, default=OUTPUT_NAMES, metavar="R,C", help="of the two heads")
    add(
        "--roles",
        type=pairs,
        metavar="ROLE=T,...",
        help="which output of forward is regression, classification, loss: name or position",
    )
    add(
        "--verify-batches",
        type=whole_numbers,
        default=VERIFY_BATCHES,
        metavar="0,1,2",
        help=f"batch sizes ({','.join(map(str, VERIFY_BATCHES))})",
    )
    add("--verify-data", type=Path, metavar="X", help="verify on these rows instead")
    for name, what in (("--atol", "absolute"), ("--rtol", "of the largest value")):
        add(
            name,
            type=limit,
            action="append",
            metavar="[OUTPUT:]V",
            help=f"allow this error, {what}",
        )
    add("--seed", type=int, default=0, help="of the random inputs (0)")
    add("--report", type=Path, metavar="R.json", help="write the report, of a refused file too")
    add("-q", "--quiet", action="store_true", help="no summary")


def load_named(
    args: argparse.Namespace, input_names: Sequence[str], normalize: Any = None
) -> Named:
    """Load the model, its weights and its rows; random rows are such as `normalize` scales.

    Raises:
        UsageError: Something named is not there, or names and batch sizes make no sense.
        OnnxExportError: The factory or the checkpoint fails.
    """
    _check_written(args)
    with as_usage(TypeError, ValueError):
        names = Signature(tuple(input_names), tuple(args.output_names)).input_names
        batch_sizes("--verify-batches", args.verify_batches)
        as_roles(args.roles)
        scalings = options(names, normalize=normalize).normalize
    torch.manual_seed(args.seed)
    model = load_model(args.model)
    if args.checkpoint is not None:
        load_checkpoint(model, args.checkpoint)
    dtype = model_dtype(model)
    example: Tensors | None = None
    data: Tensors | None = None
    if args.input_shape is not None:
        if len(names) > 1:
            raise UsageError(
                "--input-shape is for one input: give the rows of several as --example"
            )
        drawn = torch.randn(EXAMPLE_ROWS, *args.input_shape, dtype=dtype)
        with as_usage(ValueError):
            example = restored((drawn,), names, scalings)
    if args.example is not None:
        example = load_rows(args.example, names, dtype)
    if args.verify_data is not None:
        data = load_rows(args.verify_data, names, dtype)
    keywords = {
        "output_names": args.output_names,
        "roles": args.roles,
        "atol": limits(args.atol),
        "rtol": limits(args.rtol),
        "seed": args.seed,
    }
    return Named(model, example, data, keywords)


@contextmanager
def reporting(args: argparse.Namespace) -> Iterator[Callable[[VerificationReport], None]]:
    """Gives what to call with an accepted report; writes `--report` for a refused file too."""

    def accept(report: VerificationReport) -> None:
        _write_report(args.report, report)
        if not args.quiet:
            print(report.summary())

    try:
        yield accept
    except OnnxVerificationError as error:
        _write_report(args.report, error.report)
        raise


def note(text: str) -> None:
    """Say something on stderr that is no error."""
    print(f"fused-loss: {text}", file=sys.stderr)


def words(text: str) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b")."""
    return tuple(word.strip() for word in text.split(","))


def pairs(text: str) -> dict[str, str]:
    """ "a=b,c=d" -> {"a": "b", "c": "d"}."""
    parts = [word.partition("=") for word in words(text)]
    if not all(equals for _, equals, _ in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be role=output, with commas between")
    return {name.strip(): value.strip() for name, _, value in parts}


def limit(text: str) -> tuple[str, float]:
    """ "price:0.5" -> ("price", 0.5); without a name it is of every output, ""."""
    name, _, number = text.rpartition(":")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number, or one of an output, as in price:0.5"
        ) from None


def limits(given: Sequence[tuple[str, float]] | None) -> float | dict[str, float] | None:
    """What `--atol` or `--rtol` said, perhaps several times.

    Raises:
        UsageError: A limit for every output beside one for a single output.
    """
    if given is None:
        return None
    by_output = dict(given)
    if "" not in by_output:
        return by_output
    if len(by_output) > 1:
        raise UsageError("give --atol and --rtol for every output at once, or each by its name")
    return by_output[""]


def whole_numbers(text: str, like: str = "0,1,64") -> tuple[int, ...]:
    """ "0,1,2" -> (0, 1, 2); `like` is an example for who writes something else."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be whole numbers with commas between, as in {like}"
        ) from None


def shape(text: str) -> tuple[int, ...]:
    """ "3,8,8" -> (3, 8, 8)."""
    sizes = whole_numbers(text, like="3,8,8")
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text} must hold sizes of 1 and above")
    return sizes


INPUTS = (
    "checkpoint", "example", "verify_data", "calibration_data", "normalize", "denormalize",
    "class_names",
)  # fmt: skip


def _check_written(args: argparse.Namespace) -> None:
    """Before the work is done and a file written, not after: nothing that is read is replaced."""
    written = {"--report": args.report}
    if hasattr(args, "force"):  # of export: what verify calls OUT it only reads
        written["OUT"] = args.out
    read = {name: getattr(args, name, None) for name in INPUTS}
    for option, path in written.items():
        for name, given in read.items():
            if path and given and path.resolve() == given.resolve():
                raise UsageError(
                    f"{option} {path} is what --{name.replace('_', '-')} reads: "
                    "give it another name"
                )
    if args.report is None:
        return
    if not args.report.resolve().parent.is_dir() or args.report.is_dir():
        raise UsageError(f"--report {args.report} cannot be written: no such folder, or one itself")
    if args.report.resolve() == args.out.resolve():
        raise UsageError(f"--report {args.report} is the model file: give it another name")


def _write_report(path: Path | None, report: VerificationReport) -> None:
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
