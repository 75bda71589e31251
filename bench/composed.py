"""Every option of the combined loss as a user would compose it from PyTorch's own operators.

What the loss is held to: its error may be as large as this composition's own in the same dtype. It
calls `F.mse_loss` and `F.cross_entropy`, and spells out in `log_softmax` and `masked_fill` what
these lack. Nothing of it is shared with a backend.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# What PyTorch's two losses do not take, by head.
SPELT_OUT = (
    {"regression_weight", "nan_targets", "regression_normalizer"},
    {"class_mask", "classification_weight", "classification_normalizer"},
)
Head = tuple[Tensor, Tensor, Tensor]  # weighted losses, their weights, which of them are there


def composed(
    r: Tensor, z: Tensor, y: Tensor, t: Tensor, dtype: torch.dtype, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its two components, computed in `dtype` and differentiable.

    Args:
        r: As `regression_output` of `combined_loss`; so are the next three.
        z: Logits.
        y: Regression targets.
        t: Class indices or probabilities.
        dtype: Every floating-point tensor is converted to it first.
        **options: Those of `combined_loss`.
    """
    options = {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in options.items()
    }
    r, z, y = r.to(dtype), z.to(dtype), y.to(dtype)
    t = t.to(dtype) if t.is_floating_point() else t.long()
    reduction = options.get("reduction", "mean")
    one = reduction == "none" and z.dim() == 1  # all of r is one sample
    plain = reduction != "none" and options.get("empty", "nan") == "nan"
    if plain and not SPELT_OUT[0] & options.keys():
        mse = F.mse_loss(r, y, reduction=reduction)
    else:
        mse = _reduced("regression", options, _squared_errors(r, y, options), one)
    if plain and not SPELT_OUT[1] & options.keys():
        ce = _cross_entropy(z, t, options, reduction)
    else:
        ce = _reduced("classification", options, _cross_entropies(z, t, options), one)
    pair = options.get("loss_weights")
    if pair is None:
        alpha = options.get("alpha", 0.5)
        pair = alpha, 1 - alpha
    return pair[0] * mse + pair[1] * ce, mse, ce


def _cross_entropy(z: Tensor, t: Tensor, options: dict[str, Any], reduction: str) -> Tensor:
    hard = not t.is_floating_point()
    return F.cross_entropy(
        z,
        t,
        options.get("class_weight"),
        ignore_index=options.get("ignore_index", -100) if hard else -100,
        reduction=reduction,
        label_smoothing=options.get("label_smoothing", 0.0),
    )


def _squared_errors(r: Tensor, y: Tensor, options: dict[str, Any]) -> Head:
    there = torch.ones_like(y, dtype=torch.bool)
    if options.get("nan_targets") == "ignore":
        there = ~y.isnan()
        r, y = r.masked_fill(~there, 0.0), y.masked_fill(~there, 0.0)
    weight = options.get("regression_weight", y.new_ones(())) * there
    return F.mse_loss(r, y, reduction="none") * weight, weight, there


def _cross_entropies(z: Tensor, t: Tensor, options: dict[str, Any]) -> Head:
    class_weight = options.get("class_weight")
    hard = not t.is_floating_point()
    positions = t if hard else t.select(min(z.dim() - 1, 1), 0)
    there = (
        t != options.get("ignore_index", -100)
        if hard
        else torch.ones_like(positions, dtype=torch.bool)
    )
    at = t.where(there, 0) if hard else t
    weight = options.get("classification_weight", z.new_ones(())) * there
    if options.get("class_mask") is None:
        losses = _cross_entropy(z, t, options, "none")
    else:
        losses = _masked_cross_entropies(z, at, options).masked_fill(~there, 0.0)
    share = weight if class_weight is None or not hard else weight * class_weight[at]
    return losses * weight, share, there


def _masked_cross_entropies(z: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    """One a position, over the classes that the mask leaves."""
    axis, smoothing = min(z.dim() - 1, 1), options.get("label_smoothing", 0.0)
    mask = options["class_mask"]
    if mask.dim() == 1 and z.dim() > 1:
        mask = mask.view(1, -1, *[1] * (z.dim() - 2))
    mask = mask.expand(z.shape)
    q = t if t.is_floating_point() else F.one_hot(t, z.shape[axis]).movedim(-1, axis)
    q, possible = q.to(z.dtype), mask.to(z.dtype)  # a number over integers has the default dtype
    q = (1 - smoothing) * q + smoothing * possible / mask.sum(axis, keepdim=True).clamp(min=1)
    if options.get("class_weight") is not None:
        q = q * options["class_weight"].view(-1, *[1] * (z.dim() - 1 - axis))
    nowhere = ~mask.any(axis, keepdim=True)
    log_p = z.masked_fill(~mask, -torch.inf).masked_fill(nowhere, 0.0).log_softmax(axis)
    log_p = log_p.masked_fill(nowhere, -torch.inf).masked_fill(q == 0, 0.0)
    return -(q * log_p).sum(axis)


def _reduced(name: str, options: dict[str, Any], head: Head, one: bool) -> Tensor:
    """Weighted losses as the reduction, the normalizer and `empty` say."""
    losses, share, there = head
    reduction = options.get("reduction", "mean")
    if reduction == "sum":
        return losses.sum()
    if reduction == "none" and not one:
        losses, there = (x.flatten(1).sum(1) if x.dim() > 1 else x for x in (losses, there))
        return losses / there.clamp(min=1)
    if reduction == "none":
        return losses.sum() / there.sum().clamp(min=1)
    normalizer = options.get(f"{name}_normalizer")
    if normalizer is not None:
        return losses.sum() / normalizer
    total = share.expand(losses.shape).sum()
    nothing = 0.0 if options.get("empty") == "zero" else torch.nan
    return (losses.sum() / total.where(total != 0, 1.0)).where(total != 0, nothing)
