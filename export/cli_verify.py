"""`fused-loss verify`: hold an ONNX file to the model that it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fused_loss.export.admission import admitted
from fused_loss.export.cli_model import add_options, load_named, reporting, words
from fused_loss.export.errors import OnnxLoadError, as_usage
from fused_loss.export.files import needed
from fused_loss.export.metadata import recorded
from fused_loss.export.quantize import MIN_LABEL_AGREEMENT
from fused_loss.export.signature import INPUT_NAMES
from fused_loss.export.structure import Structure, read_structure
from fused_loss.export.verify import verify_onnx


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("out", metavar="FILE", type=Path, help="the .onnx file")
    add_options(parser)
    parser.add_argument("--input-names", type=words, metavar="A,B", help="(the file's own)")
    parser.add_argument(
        "--min-label-agreement",
        type=float,
        default=MIN_LABEL_AGREEMENT,
        metavar="P",
        help=f"of an int8 file with the model ({MIN_LABEL_AGREEMENT})",
    )


def run(args: argparse.Namespace) -> int:
    """Verify; 0 where onnxruntime agrees with PyTorch.

    Raises:
        UsageError: No such file, options that do not fit it, or see `load_named`.
        OnnxLoadError: It is not a model, or not what was exported: there is nothing to verify.
        OnnxExportError, OnnxVerificationError: As `verify_onnx`.
    """
    needed(args.out)
    admitted(args.out)
    structure = read_structure(args.out)
    if structure.problems:
        raise OnnxLoadError(f"{args.out.name} is {structure.problems[0]}")
    names = args.input_names or tuple(structure.inputs) or INPUT_NAMES
    named = load_named(args, names, _normalize(structure))
    with as_usage(TypeError, ValueError), reporting(args) as accept:
        accept(
            verify_onnx(
                args.out,
                named.model,
                named.example,
                data=named.data,
                input_names=names,
                batches=args.verify_batches,
                min_label_agreement=args.min_label_agreement,
                **named.keywords,
            )
        )
    return 0


def _normalize(structure: Structure) -> Any:
    """What the file says that it scales its inputs by; damage is for `verify_onnx` to tell."""
    try:
        return recorded(structure.metadata).get("normalize")
    except ValueError:
        return None
