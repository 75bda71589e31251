"""The files of the demo: written aside, then all put in place, or none."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fused_loss.demo_data import COLUMNS, SPECIES, Rows
from fused_loss.demo_figure import draw
from fused_loss.demo_model import Epoch, Outputs, PenguinModel
from fused_loss.export import OnnxDualHead, VerificationReport, export_onnx
from fused_loss.export.errors import UsageError, require
from fused_loss.export.files import replacing

MODEL = "penguins.onnx"
WEIGHTS = "penguins.safetensors"
REPORT = "verification.json"
FIGURE = "penguins.png"
TABLE = "held-out.csv"
ARRAYS = "held-out.npz"
NAMES = (MODEL, WEIGHTS, REPORT, FIGURE, TABLE, ARRAYS)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A scratch folder; when the block succeeds, each of NAMES goes from it into `folder`.

    That `folder` can take them is found out before the block runs.

    Raises:
        UsageError: `folder` is something else than a folder.
        OSError: It cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{folder} is not a folder: give --out another name") from error
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        targets = {name: stack.enter_context(replacing(folder / name)) for name in NAMES}
        yield Path(scratch)
        for name, target in targets.items():
            shutil.copyfile(Path(scratch, name), target)


def write_model(folder: Path, model: PenguinModel, example: Rows) -> VerificationReport:
    """The ONNX file, the report of its verification, and the weights.

    Raises:
        OnnxExportError, OnnxVerificationError: As `export_onnx`.
    """
    report = export_onnx(model, example.inputs, folder / MODEL).report
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    weights = require("safetensors.torch", "demo").save(model.state_dict())
    (folder / WEIGHTS).write_bytes(weights)
    return report


def write_rows(folder: Path, rows: Rows) -> None:
    """The inputs as a table, for people and `predict`; with the answers as arrays, for `verify`."""
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows.inputs.numpy().astype(str).tolist())
    np.savez(
        folder / ARRAYS,
        input=rows.inputs.numpy(),
        body_mass_g=rows.mass.numpy(),
        species=np.array(SPECIES)[rows.species.numpy()],
    )


def write_figure(folder: Path, history: Sequence[Epoch], outputs: Outputs, rows: Rows) -> None:
    """The picture of `outputs`, for `rows`."""
    mass, logits = outputs
    figure = draw(
        history,
        rows.mass.flatten().numpy(),
        mass.flatten().numpy(),
        rows.species.numpy(),
        logits.argmax(1).numpy(),
    )
    figure.savefig(folder / FIGURE, metadata={"Software": None})


def predict(folder: Path, rows: Rows) -> Outputs:
    """What onnxruntime gives for `rows`: (mass (N, 1) in g, logits (N, 3))."""
    mass, logits = OnnxDualHead(folder / MODEL)(rows.inputs)
    return torch.from_numpy(mass), torch.from_numpy(logits)
