"""The rows of the accuracy table: each option of the combined loss alone, and all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_loss.bench.cases import SCALE

N, C, D, S = 15, 97, 13, 2  # samples, classes, regression outputs, positions where there are some


class Problem(NamedTuple):
    """One call: its tensors and keywords, and the `grad_output` that its backward begins with."""

    r: Tensor  # (N, D)
    z: Tensor  # (N, C) or (N, C, S)
    y: Tensor
    t: Tensor
    keywords: dict[str, Any]
    grad_output: Tensor  # () or (N,)


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
        name: What is shown.
        keywords: Scalars of the call.
        tensors: The tensors among its keywords, each made from the problem and a generator.
        soft: Whether the targets are probabilities.
        ignored: The share of positions without a label, and of missing regression targets.
        positions: Whether the logits are (N, C, S).
        grad_output: What the backward pass begins with.
    """

    name: str
    keywords: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    soft: bool = False
    ignored: float = 0.0
    positions: bool = False
    grad_output: float = 1.0

    def problem(
        self, dtypes: tuple[torch.dtype, torch.dtype], seed: int, device: torch.device
    ) -> Problem:
        """Data from a seed, rounded to the dtypes of r and z; the same on every device."""
        random = torch.Generator().manual_seed(seed)
        r_dtype, z_dtype = dtypes
        shape = (N, C, S) if self.positions else (N, C)
        positions = (N, *shape[2:])
        r, y = (torch.randn(N, D, generator=random).to(r_dtype) for _ in range(2))
        z = (3 * torch.randn(shape, generator=random)).to(z_dtype)
        keywords = dict(self.keywords)
        for name in self.tensors:
            dtype = r_dtype if name == "regression_weight" else z_dtype
            keywords[name] = TENSORS[name](shape, random).to(device)
            if name.endswith("_weight"):
                keywords[name] = keywords[name].to(dtype)
        t = torch.randint(0, C, positions, generator=random)
        if "class_mask" in keywords:  # a target is possible
            keywords["class_mask"].scatter_(1, t.unsqueeze(1).to(device), True)
        t = t.masked_fill(torch.rand(positions, generator=random) < self.ignored, -100)
        if self.soft:
            t = torch.randn(shape, generator=random).mul_(3).softmax(1)
            t = t.masked_fill(~keywords["class_mask"].cpu(), 0) if "class_mask" in keywords else t
            t = t.to(z_dtype)
        if "nan_targets" in keywords:
            y = y.masked_fill(torch.rand(N, D, generator=random) < self.ignored, torch.nan)
        per_sample = keywords.get("reduction") == "none"
        grad_output = torch.full((N,) if per_sample else (), self.grad_output)
        if per_sample:
            grad_output = grad_output * (torch.rand(N, generator=random) + 0.5)
        r, z, y, t = (x.to(device) for x in (r, z, y, t))
        return Problem(r, z, y, t, keywords, grad_output.to(device))


def _uniform(*shape: int) -> Callable[[tuple[int, ...], torch.Generator], Tensor]:
    return lambda _, random: torch.rand(shape, generator=random) + 0.5


TENSORS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "alpha": lambda _, random: torch.tensor(0.3),
    "loss_weights": lambda _, random: torch.tensor([0.7, 1.9]),
    "class_weight": _uniform(C),
    "class_mask": lambda shape, random: torch.rand(shape, generator=random) < 0.5,
    "regression_weight": _uniform(N, D),
    "classification_weight": lambda shape, random: (
        torch.rand((N, *shape[2:]), generator=random) + 0.5
    ),
    "regression_normalizer": lambda _, random: torch.tensor(700.0),
    "classification_normalizer": lambda _, random: torch.tensor(300.0),
}
WEIGHTS = ("class_weight", "class_mask", "regression_weight", "classification_weight")
NORMALIZERS = ("regression_normalizer", "classification_normalizer")
EVERYTHING: dict[str, Any] = {"label_smoothing": 0.1, "nan_targets": "ignore", "empty": "zero"}

OPTIONS = (
    Option("defaults"),
    Option('reduction="sum"', {"reduction": "sum"}),
    Option('reduction="none"', {"reduction": "none"}),
    Option("logits (N, C, d)", positions=True),
    Option('logits (N, C, d), reduction="none"', {"reduction": "none"}, positions=True),
    Option("probabilities", soft=True),
    Option("ignore_index", ignored=0.4),
    Option("class_weight", tensors=("class_weight",)),
    Option("label_smoothing", {"label_smoothing": 0.1}),
    Option("class_mask", tensors=("class_mask",)),
    Option("class_mask, probabilities", tensors=("class_mask",), soft=True),
    Option("regression_weight", tensors=("regression_weight",)),
    Option("classification_weight", tensors=("classification_weight",)),
    Option("normalizers", tensors=NORMALIZERS),
    Option('nan_targets="ignore"', {"nan_targets": "ignore"}, ignored=0.4),
    Option("nothing labelled", {"nan_targets": "ignore", "empty": "zero"}, ignored=1.0),
    Option("alpha, a tensor", tensors=("alpha",)),
    Option("loss_weights, a tensor", tensors=("loss_weights",)),
    Option("inplace_gradient", {"inplace_gradient": True}),
    Option("task_losses", {"task_losses": True}),
    Option("grad_output 1/3", grad_output=1 / 3),
    Option("grad_output 65536", grad_output=SCALE),
    Option(
        "everything",
        EVERYTHING,
        (*WEIGHTS, *NORMALIZERS, "alpha"),
        ignored=0.3,
        positions=True,
        grad_output=1 / 3,
    ),
    Option(
        "everything, probabilities",
        EVERYTHING,
        (*WEIGHTS, *NORMALIZERS, "loss_weights"),
        soft=True,
        ignored=0.3,
    ),
    Option(
        'everything, reduction="none"',
        {**EVERYTHING, "reduction": "none"},
        (*WEIGHTS, "loss_weights"),
        ignored=0.3,
        positions=True,
    ),
)
