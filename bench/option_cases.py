"""The options that change the arithmetic, as someone writes them who has PyTorch alone.

In float32, in the fewest operators that come to mind, of the tensors of one problem.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


class Problem(NamedTuple):
    """Tensors of one size; the outputs and the weights of the loss require grad."""

    r: Tensor  # (N, D)
    z: Tensor  # (N, C)
    y: Tensor
    t: Tensor  # (N,)
    soft: Tensor  # (N, C), probabilities
    some: Tensor  # t without a fifth of the labels
    holes: Tensor  # y with NaN in a fifth of its elements
    mask: Tensor  # (N, C): a fifth of the classes is impossible, a target never
    class_weight: Tensor  # (C,)
    of_elements: Tensor  # (N, D)
    of_positions: Tensor  # (N,)
    alpha: Tensor  # ()
    weights: Tensor  # (2,)


def problem(N: int, C: int, D: int) -> Problem:
    """Random tensors, the same each time."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random)

    y, t = normal(N, D), torch.randint(C, (N,), generator=random)
    return Problem(
        r=normal(N, D).requires_grad_(),
        z=normal(N, C).requires_grad_(),
        y=y,
        t=t,
        soft=normal(N, C).softmax(1),
        some=t.masked_fill(uniform(N) < 0.2, IGNORE_INDEX),
        holes=y.masked_fill(uniform(N, D) < 0.2, torch.nan),
        mask=(uniform(N, C) < 0.8).scatter_(1, t[:, None], True),
        class_weight=uniform(C) + 0.5,
        of_elements=uniform(N, D) + 0.5,
        of_positions=uniform(N) + 0.5,
        alpha=torch.tensor(0.3, requires_grad=True),
        weights=torch.tensor([0.7, 1.9], requires_grad=True),
    )


@dataclass(frozen=True)
class OptionCase:
    """A row: keywords of the call, and the same without this package.

    Attributes:
        name: What is shown.
        keywords: Of `combined_loss`, from a problem; "y" and "t" stand for other targets.
        composed: The loss by PyTorch's own operators.
    """

    name: str
    keywords: Callable[[Problem], dict[str, Any]]
    composed: Callable[[Problem], Tensor]


def _ce(p: Problem, **options: Any) -> Tensor:
    return F.cross_entropy(p.z, p.t, **options)


def _mse(p: Problem, **options: Any) -> Tensor:
    return F.mse_loss(p.r, p.y, **options)


def _half(mse: Tensor, ce: Tensor) -> Tensor:
    return 0.5 * mse + (1 - 0.5) * ce


def _mean(losses: Tensor, weight: Tensor) -> Tensor:
    return (losses * weight).sum() / weight.sum()


def _without_holes(p: Problem) -> Tensor:
    missing = p.holes.isnan()
    errors = F.mse_loss(p.r, p.holes.masked_fill(missing, 0.0), reduction="none")
    return _mean(errors, (~missing).to(errors.dtype))


CASES = (
    OptionCase("defaults", lambda p: {}, lambda p: _half(_mse(p), _ce(p))),
    OptionCase(
        'reduction="sum"',
        lambda p: {"reduction": "sum"},
        lambda p: _half(_mse(p, reduction="sum"), _ce(p, reduction="sum")),
    ),
    OptionCase(
        'reduction="none"',
        lambda p: {"reduction": "none"},
        lambda p: _half(_mse(p, reduction="none").mean(1), _ce(p, reduction="none")),
    ),
    OptionCase(
        "probabilities",
        lambda p: {"t": p.soft},
        lambda p: _half(_mse(p), F.cross_entropy(p.z, p.soft)),
    ),
    OptionCase(
        "missing classes",
        lambda p: {"t": p.some},
        lambda p: _half(_mse(p), F.cross_entropy(p.z, p.some)),
    ),
    OptionCase(
        "class_weight",
        lambda p: {"class_weight": p.class_weight},
        lambda p: _half(_mse(p), _ce(p, weight=p.class_weight)),
    ),
    OptionCase(
        "label_smoothing",
        lambda p: {"label_smoothing": 0.1},
        lambda p: _half(_mse(p), _ce(p, label_smoothing=0.1)),
    ),
    OptionCase(
        "class_mask",
        lambda p: {"class_mask": p.mask},
        lambda p: _half(_mse(p), F.cross_entropy(p.z.masked_fill(~p.mask, -torch.inf), p.t)),
    ),
    OptionCase(
        "regression_weight",
        lambda p: {"regression_weight": p.of_elements},
        lambda p: _half(_mean(_mse(p, reduction="none"), p.of_elements), _ce(p)),
    ),
    OptionCase(
        "classification_weight",
        lambda p: {"classification_weight": p.of_positions},
        lambda p: _half(_mse(p), _mean(_ce(p, reduction="none"), p.of_positions)),
    ),
    OptionCase(
        "normalizers",
        lambda p: {"regression_normalizer": 77.0, "classification_normalizer": 55.0},
        lambda p: _half(_mse(p, reduction="sum") / 77.0, _ce(p, reduction="sum") / 55.0),
    ),
    OptionCase(
        'nan_targets="ignore"',
        lambda p: {"y": p.holes, "nan_targets": "ignore"},
        lambda p: _half(_without_holes(p), _ce(p)),
    ),
    OptionCase(
        "alpha, a tensor",
        lambda p: {"alpha": p.alpha},
        lambda p: p.alpha * _mse(p) + (1 - p.alpha) * _ce(p),
    ),
    OptionCase(
        "loss_weights, a tensor",
        lambda p: {"loss_weights": p.weights},
        lambda p: p.weights[0] * _mse(p) + p.weights[1] * _ce(p),
    ),
)
