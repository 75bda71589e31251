"""The models of the inference benchmark, what they are fed, and the float64 that holds them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fused_loss.bench.cases import MODEL_PHASES, Phase
from fused_loss.bench.verify import Distance, Errors
from fused_loss.modules import DualHead

FAMILY = "inference"
OUTPUTS = ("regression output", "classification output")
D, C = 4, 10  # regression outputs and classes of a sample
BLOCK_ROWS = 512  # of the float64 model


class Batch(NamedTuple):
    """What a model is fed, twice: a tensor (N, *) float32, and the same memory as an array."""

    x: Tensor
    array: np.ndarray


def _mlp() -> DualHead:
    trunk = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    return DualHead(trunk, nn.Linear(256, D), nn.Linear(256, C))


def _cnn() -> DualHead:
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),  # (N, 1, 28, 28) -> (N, 16, 28, 28)
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),  # (N, 16, 14, 14) -> (N, 32, 14, 14)
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),  # (N, 32 * 7 * 7)
    )
    return DualHead(trunk, nn.Linear(32 * 7 * 7, D), nn.Linear(32 * 7 * 7, C))


# the modules, and the shape of a sample
MODELS: dict[str, tuple[Callable[[], DualHead], tuple[int, ...]]] = {
    "mlp-256": (_mlp, (64,)),
    "cnn": (_cnn, (1, 28, 28)),
}


def build(model: str) -> DualHead:
    """A model by name in evaluation mode: float32, on the CPU, the same weights each time.

    Weights are normal with variance 2 / fan-in (He et al. 2015), so that no layer fades out.
    """
    made = MODELS[model][0]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            fan_in = math.prod(parameter.shape[1:])
            parameter.normal_(0, math.sqrt(2 / fan_in), generator=generator)
    return made.eval()


@dataclass(frozen=True)
class ModelCase:
    """A model to run on a batch.

    Attributes:
        model: One of `MODELS`.
        N: Rows of the batch.
    """

    model: str
    N: int

    @property
    def name(self) -> str:
        """Unique among all cases."""
        return f"{self.model}-batch-{self.N}"

    @property
    def family(self) -> str:
        """The same for all models."""
        return FAMILY

    @property
    def phases(self) -> tuple[Phase, ...]:
        """On one thread, and on two where there are as many cores."""
        return tuple(p for p in MODEL_PHASES if (p.threads or 1) <= (os.cpu_count() or 1))

    @property
    def logits_bytes(self) -> None:
        """No unit of memory: onnxruntime's own is not seen, so none is reported."""
        return

    def bytes_moved(self, phase: Phase) -> int:
        """Weights, inputs and outputs, each once: what is between two layers may stay in a cache.

        At 4 bytes each.
        """
        outside = math.prod(MODELS[self.model][1]) + D + C
        return 4 * (_size(self.model)[0] + self.N * outside)

    def flops(self, phase: Phase) -> int:
        """Of the matrix products and convolutions, a multiplication and an addition apart."""
        return self.N * _size(self.model)[1]

    def make(self, device: torch.device | str = "cpu", seed: int = 0) -> Batch:
        """Random standard normal rows: the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.N, *MODELS[self.model][1], generator=generator)
        return Batch(x, x.numpy())

    def input_sets(self, device: torch.device) -> int:
        """One: a service runs a model on what it has just received."""
        return 1

    def as_json(self) -> dict[str, Any]:
        """Every field, and the bytes and operations of each phase."""
        return (
            {"name": self.name, "family": self.family}
            | asdict(self)
            | {
                "bytes_moved": {phase.value: self.bytes_moved(phase) for phase in self.phases},
                "flops": {phase.value: self.flops(phase) for phase in self.phases},
            }
        )


@cache
def _size(model: str) -> tuple[int, int]:
    """(parameters, operations of a row), counted by PyTorch without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode  # loads Triton where there is one

    make, shape = MODELS[model]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        made = make()
        made(torch.empty(1, *shape))
    return sum(p.numel() for p in made.parameters()), counter.get_total_flops()


def errors(case: ModelCase, phase: Phase, batch: Batch, outputs: tuple[Any, ...]) -> Errors:
    """How far (regression (N, D), classification (N, C)) are from the model in float64.

    Raises:
        ValueError: An output is missing, or has another shape or dtype.
    """
    found = [torch.as_tensor(output) for output in outputs]
    forms = [(tuple(output.shape), output.dtype) for output in found]
    if forms != [((case.N, width), torch.float32) for width in (D, C)]:
        raise ValueError(
            f"the outputs must be float32 ({case.N}, {D}) and ({case.N}, {C}): {forms}"
        )
    model = copy.deepcopy(build(case.model)).double()
    distances = [Distance() for _ in OUTPUTS]
    with torch.no_grad():
        for start in range(0, case.N, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            exact = model(batch.x[rows].double())
            for distance, output, truth in zip(distances, found, exact, strict=True):
                distance.add(output[rows], truth)
    return {name: distance.error() for name, distance in zip(OUTPUTS, distances, strict=True)}
