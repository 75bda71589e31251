"""`fused-loss inspect`: what an ONNX file is, and whether it is what was written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fused_loss.export.files import needed
from fused_loss.export.inspection import inspect_onnx


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="FILE", type=Path, help="the .onnx file")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def run(args: argparse.Namespace) -> int:
    """Show; 0, or 1 where the file has changed since it was exported.

    Raises:
        UsageError: No such file, or a folder.
        OnnxLoadError: As `inspect_onnx`.
    """
    needed(args.model)
    found = inspect_onnx(args.model)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    return 1 if found.problem else 0
