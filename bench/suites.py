"""Which cases there are, by the people who have such tensors, and the suites made of them.

Imports nothing but torch, so that correctness tests may draw on the same cases.
"""

from __future__ import annotations

import torch

from fused_loss.bench.cases import Case
from fused_loss.bench.models import MODELS, ModelCase


def custom(shape: str, dtype: str) -> Case:
    """A user's own case from "N,C,D": N samples, C classes, D regression outputs a sample.

    Raises:
        ValueError: `shape` is not three positive whole numbers.
    """
    parts = shape.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--shape must be N,C,D such as 512,1000,16, got {shape!r}")
    N, C, D = map(int, parts)
    return Case(f"{N}x{C}x{D}-{dtype}", "custom", N, C, (D,), (), dtype, dtype)


def _language(tokens: int, vocabulary: int, dtype: str = "bfloat16") -> Case:
    """Next-token logits and a value head, one value a token; a tenth of the tokens is padding."""
    name = f"language-{tokens}x{vocabulary}" + ("" if dtype == "bfloat16" else f"-{dtype}")
    return Case(name, "language", tokens, vocabulary, (), (), dtype, ignored=0.1)


def _sweep(elements: int, classes: tuple[int, ...]) -> tuple[Case, ...]:
    """Constant N·C over the number of classes."""
    return tuple(Case(f"sweep-{elements // C}x{C}", "sweep", elements // C, C) for C in classes)


def _batches(classes: int, sizes: tuple[int, ...]) -> tuple[Case, ...]:
    """Constant C over the number of samples."""
    return tuple(Case(f"batch-{N}x{classes}", "batch", N, classes) for N in sizes)


TUTORIAL = Case("tutorial-100x2", "tutorial", 100, 2)
TABULAR = (
    Case("tabular-64x2", "tabular", 64, 2),
    Case("tabular-1024x20", "tabular", 1024, 20, (10,), class_weight=True),
)
BOARD = (
    Case("board-256x65", "board", 256, 65, soft_targets=True),
    Case("board-4096x65", "board", 4096, 65, soft_targets=True),
    Case("board-256x4674", "board", 256, 4674, soft_targets=True),
    Case("board-4096x4674", "board", 4096, 4674, soft_targets=True),
)
DISTILLATION = (
    Case("distillation-32x1000", "distillation", 32, 1000, (512,), label_smoothing=0.1),
    Case("distillation-256x1000", "distillation", 256, 1000, (512,), label_smoothing=0.1),
)
AUTOENCODER = (
    Case("autoencoder-64x10", "autoencoder", 64, 10, (784,)),
    Case("autoencoder-1024x10", "autoencoder", 1024, 10, (784,)),
)
DENSE = (
    Case("dense-2x13x96x96", "dense", 2, 13, (1, 96, 96), (96, 96), ignored=0.1),
    Case("dense-8x13x288x384", "dense", 8, 13, (1, 288, 384), (288, 384), ignored=0.1),
)
LANGUAGE_SMALL = (
    _language(64, 32000),
    _language(256, 32000, "float32"),
    _language(256, 50257),
)
LANGUAGE = (
    _language(4096, 32000),
    _language(8192, 50257),
    _language(8192, 128256),
    _language(16384, 152064),  # above 2^31 logits
    _language(4096, 262144),
)
SWEEP_CPU = _sweep(1 << 22, (2, 16, 128, 1024, 16384, 262144))
SWEEP_GPU = _sweep(1 << 27, (2, 8, 64, 512, 1024, 4096, 16384, 32768, 65536, 262144))
BATCHES_CPU = _batches(1000, (1, 16, 256, 4096))
BATCHES_GPU = _batches(32768, (1, 16, 132, 1024))

INFERENCE = tuple(ModelCase(model, N) for model in MODELS for N in (1, 64, 4096))

EVERYWHERE = (TUTORIAL, *TABULAR, *BOARD, *DISTILLATION, *AUTOENCODER, *DENSE)
CPU = (*EVERYWHERE, *LANGUAGE_SMALL, *SWEEP_CPU, *BATCHES_CPU)
# What only a GPU is fit for comes first: a run that is cut short has it.
GPU = (TUTORIAL, *LANGUAGE, *SWEEP_GPU, *BATCHES_GPU, *EVERYWHERE[1:])
SUITES: dict[str, tuple[Case | ModelCase, ...]] = {
    "smoke": (TUTORIAL, TABULAR[1], BOARD[0], DISTILLATION[0], LANGUAGE_SMALL[0]),
    "cpu": CPU,
    "gpu": GPU,
    "onnx": INFERENCE,
    "full": (*dict.fromkeys((*GPU, *CPU)), *INFERENCE),
}
CASES: dict[str, Case | ModelCase] = {c.name: c for suite in SUITES.values() for c in suite}


def suite(name: str, device: torch.device) -> tuple[Case | ModelCase, ...]:
    """The cases of a suite; in "full", those alone that the device can be asked to hold."""
    if name == "full" and device.type == "cpu":
        return (*CPU, *INFERENCE)
    return SUITES[name]
