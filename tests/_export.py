"""Models, files and faults for the tests of the export."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fused_loss import DualHead
from fused_loss.cli import main
from fused_loss.export.reference import Reference
from fused_loss.export.seal import sealed
from fused_loss.export.trace import traced

WIDTH, CLASSES = 4, 3


class Scaled(nn.Module):
    """A constant in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.37 * x


class TwoInputs(nn.Module):
    """Floats (N, 4) and an index (N, 2) in; a number a sample and 3 logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH)
        self.regression_head = nn.Linear(WIDTH, 1)
        self.classification_head = nn.Linear(WIDTH, CLASSES)

    def forward(self, numbers: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(numbers + self.embedding(index).sum(1))
        return self.regression_head(features).squeeze(1), self.classification_head(features)


class Branches(nn.Module):
    """Wrong by a factor where the batch is small; the exporter sees one branch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        regression, classification = self.model(x)
        return (regression, classification) if x.shape[0] > 2 else (2 * regression, classification)


class Noisy(nn.Module):
    """Dropout that `eval()` does not turn off."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(nn.functional.dropout(x, 0.5))


def mlp(seed: int = 0, activation: nn.Module | None = None) -> DualHead:
    """(N, 4) -> (N, 3) and (N, 3), with dropout; a seed always gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = activation or nn.Sequential(nn.ReLU(), Scaled())
        trunk = nn.Sequential(nn.Linear(WIDTH, 16), middle, nn.Dropout(0.5))
        return DualHead(trunk, nn.Linear(16, 3), nn.Linear(16, CLASSES))


def untrained() -> DualHead:
    """`mlp()` with other weights, as a factory makes it before its checkpoint is loaded."""
    return mlp(seed=1)


def convolutional() -> DualHead:
    """(N, 2, 4, 5) -> (N, 1, 4, 5) and (N, 3, 4, 5): both heads at every pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        return DualHead(trunk, nn.Conv2d(6, 1, 1), nn.Conv2d(6, CLASSES, 1))


def rows(count: int = 16, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal rows (count, *shape), (count, 4) by default."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *(shape or (WIDTH,)), generator=generator).to(dtype)


@cache
def mlp_bytes() -> bytes:
    """`mlp()` as a file, traced once a process; it records its digest and nothing else."""
    return sealed(traced_bytes(mlp(), rows()))


def traced_bytes(model: nn.Module, *example: Tensor, **options: Any) -> bytes:
    """A model as a file without metadata."""
    reference = Reference(model, example, **options)
    proto = traced(reference.module, reference.example, reference.signature, 20)
    return proto.SerializeToString(deterministic=True)


def mlp_proto() -> Any:
    """What the tracer gives of `mlp()`."""
    proto = onnx.load_from_string(mlp_bytes())
    proto.ClearField("metadata_props")
    return proto


def model_of(path: Path) -> bytes:
    """A file without its metadata."""
    proto = onnx.load(path, load_external_data=False)
    proto.ClearField("metadata_props")
    return proto.SerializeToString(deterministic=True)


def edited(file: bytes, edit: Callable[[Any], None]) -> bytes:
    """A file whose graph `edit` has changed, without the record of its digest."""
    proto = onnx.load_from_string(file)
    proto.ClearField("metadata_props")
    edit(proto.graph)
    return proto.SerializeToString()


def initializer(graph: Any, shape: tuple[int, ...]) -> Any:
    """The first initializer of that shape."""
    return next(tensor for tensor in graph.initializer if tuple(tensor.dims) == shape)


def replace_values(tensor: Any, change: Callable[[Any], Any]) -> None:
    """Write `change(values)` into an initializer."""
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def called(capsys: Any, *words: object) -> tuple[int, str, str]:
    """`fused-loss` with these words, in this process: the exit code, stdout and stderr."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    return (code, *capsys.readouterr())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder` and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
