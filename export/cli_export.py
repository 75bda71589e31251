"""`fused-loss export`: write a model to ONNX, verified or not at all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fused_loss.export.arrays import load_rows, model_dtype
from fused_loss.export.cli_model import add_options, load_named, note, reporting, words
from fused_loss.export.cli_options import add_file_options, file_options
from fused_loss.export.errors import OnnxVerificationError, UsageError, as_usage
from fused_loss.export.progress import bar
from fused_loss.export.signature import INPUT_NAMES
from fused_loss.export.to_onnx import export_onnx, failed_path, model_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="the .onnx file to write")
    add_options(parser)
    add_file_options(parser)
    add("--input-names", type=words, default=INPUT_NAMES, metavar="A,B", help="one an input")
    add("--keep-failed", action="store_true", help="keep a refused file, as OUT's .failed.onnx")
    add("--force", action="store_true", help="replace OUT, once the new file is verified")


def run(args: argparse.Namespace) -> int:
    """Export; 0 once the file is at OUT.

    Raises:
        UsageError: OUT cannot be a model file, or exists without --force; no inputs are named;
            options that do not go together or do not fit the model; or see `load_named`.
        OnnxExportError, OnnxVerificationError: As `export_onnx`.
    """
    with as_usage(OSError, ValueError):
        model_path(args.out)
    if args.out.exists() and not args.force:
        raise UsageError(f"{args.out} exists: --force replaces it, once the new file is verified")
    if args.input_shape is None and args.example is None:
        raise UsageError("one of --input-shape and --example is needed")
    keywords = file_options(args)
    named = load_named(args, args.input_names, keywords["normalize"])
    assert named.example is not None
    calibration = None
    if args.calibration_data is not None:
        names = args.input_names
        calibration = load_rows(args.calibration_data, names, model_dtype(named.model))
    if args.checkpoint is None and not args.quiet:
        note("no --checkpoint: these are the weights that the factory made")
    shown = args.quantize is not None and not args.quiet and sys.stderr.isatty()
    try:
        with (
            as_usage(TypeError, ValueError),
            reporting(args) as accept,
            bar("calibrating", shown) as progress,
        ):
            result = export_onnx(
                named.model,
                named.example,
                args.out,
                input_names=args.input_names,
                verify_batches=args.verify_batches,
                verify_data=named.data,
                calibration_data=calibration,
                progress=progress,
                keep_failed=args.keep_failed,
                **keywords,
                **named.keywords,
            )
            accept(result.report)
    except OnnxVerificationError:
        if args.keep_failed:
            note(f"the refused file is kept as {failed_path(args.out)}")
        raise
    return 0
