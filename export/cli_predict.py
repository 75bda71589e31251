"""`fused-loss predict`: rows of a table or an array in, both heads and the label out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fused_loss.export.csv_rows import HEADER
from fused_loss.export.errors import UsageError, as_usage
from fused_loss.export.files import needed, target
from fused_loss.export.progress import bar
from fused_loss.export.runtime import OnnxDualHead
from fused_loss.export.tables import predict_file

SOURCES = (".csv", ".npy", ".npz", ".parquet")
TARGETS = (".csv", ".npz", ".parquet")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("model", metavar="FILE", type=Path, help="the .onnx file")
    add("input", metavar="INPUT", type=Path, help="rows: .csv, .npy, .npz, .parquet")
    add("-o", "--output", type=Path, metavar="OUT", help=".csv, .npz, .parquet (CSV on stdout)")
    add("--header", choices=HEADER, default="auto", help="whether INPUT.csv begins with names")
    add("--threads", type=int, default=1, help="of onnxruntime (1)")
    add("-q", "--quiet", action="store_true", help="no progress bar, no summary")


def run(args: argparse.Namespace) -> int:
    """Predict; 0 once OUT is complete.

    Raises:
        UsageError: A file that is missing, of an unknown kind, or both read and written; an OUT
            that cannot be a file.
        OnnxLoadError, TableError, ValueError: As `OnnxDualHead` and `predict_file`.
    """
    _check_files(args)
    session = OnnxDualHead(args.model, threads=args.threads)
    target = args.output or sys.stdout
    shown = not args.quiet and sys.stderr.isatty() and (args.output or not sys.stdout.isatty())
    with bar(args.input.name, shown) as progress:
        rows = predict_file(session, args.input, target, header=args.header, progress=progress)
    if args.output and not args.quiet:
        print(f"{args.output}: {rows} rows")
    return 0


def _check_files(args: argparse.Namespace) -> None:
    for path in (args.model, args.input):
        needed(path)
    if args.input.suffix not in SOURCES:
        raise UsageError(f"{args.input} must be one of {', '.join(SOURCES)}")
    if args.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {args.threads}")
    if args.output is None:
        return
    if args.output.suffix not in TARGETS:
        raise UsageError(f"{args.output} must be one of {', '.join(TARGETS)}")
    if args.output.resolve() in (args.model.resolve(), args.input.resolve()):
        raise UsageError(f"{args.output} is read from: give -o another name")
    with as_usage(OSError, ValueError):
        target(args.output)
