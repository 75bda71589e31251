"""The options of `fused-loss export` about the file itself, and the JSON that they name."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fused_loss.export.errors import UsageError
from fused_loss.export.files import needed
from fused_loss.export.options import DTYPES, QUANTIZE
from fused_loss.export.quantize import MIN_LABEL_AGREEMENT
from fused_loss.export.signature import OPSET
from fused_loss.export.weights import CHOICES


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Precision, what is computed beside the model, and int8."""
    file = parser.add_argument_group("the file")
    add = file.add_argument
    add("--opset", type=int, default=OPSET, metavar="N", help=f"operator set ({OPSET})")
    add("--dtype", choices=DTYPES, help="of weights and arithmetic (the model's own)")
    add(
        "--external-data",
        choices=CHOICES,
        default="auto",
        help="weights in a file beside it (auto)",
    )
    group = parser.add_argument_group("in the file, beside the model")
    add = group.add_argument
    add("--normalize", type=Path, metavar="S.json", help="scale the input by this mean and std")
    add(
        "--denormalize",
        type=Path,
        metavar="S.json",
        help="undo this mean and std on the regression",
    )
    add("--unit", metavar="G", help='of the regression; "unit" in --denormalize says it too')
    add("--softmax", action="store_true", help="probabilities in place of logits")
    add("--label", action="store_true", help="a further output: the index of the largest logit")
    add("--class-names", type=Path, metavar="N.json", help="a list of texts, one a class")
    group = parser.add_argument_group("int8")
    add = group.add_argument
    add("--quantize", choices=QUANTIZE, help="int8 weights; static also fixes activations' ranges")
    add("--calibration-data", type=Path, metavar="C", help="rows for static: .npy, .npz by name")
    add(
        "--min-label-agreement",
        type=float,
        metavar="A",
        help=f"least share of equal labels ({MIN_LABEL_AGREEMENT})",
    )


def file_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `export_onnx` that `add_file_options` gives, JSON read.

    Raises:
        UsageError: A file that is missing or is not JSON.
    """
    keywords: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("opset", "dtype", "external_data", "unit", "softmax", "label", "quantize")
    }
    for name in ("normalize", "denormalize", "class_names"):
        path = getattr(args, name)
        keywords[name] = None if path is None else read_json(path)
    return {**keywords, "min_label_agreement": args.min_label_agreement}


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UsageError: It is missing or is not JSON.
    """
    needed(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
