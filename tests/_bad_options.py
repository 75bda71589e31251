"""Options of `combined_loss` that must be refused: the error, and what its message says."""

from __future__ import annotations

import torch
from _bad_input import NORMALIZERS, T, Z, bad
from _public import batch

r, z, y, t = batch()
MASK = z == z
ONES = {"class_weight": z[0], "regression_weight": r, "classification_weight": t.float()}
BAD_OPTIONS = [
    # class_weight
    bad(
        "a weight too few",
        ValueError,
        r"class_weight must have shape \(3,\).* got \(2,\)",
        class_weight=torch.ones(2),
    ),
    bad(
        "weights (1, C)",
        ValueError,
        r"class_weight must have shape \(3,\).* got \(1, 3\)",
        class_weight=torch.ones(1, 3),
    ),
    *[
        bad(
            f"{name} of integers",
            TypeError,
            f"{name} must be floating-point, got torch.int64: call .float",
            **{name: like.long()},
        )
        for name, like in ONES.items()
    ],
    *[
        bad(f"{name} of bools", TypeError, f"{name} must not be torch.bool", **{name: like > 0})
        for name, like in ONES.items()
    ],
    *[
        bad(
            f"{name} requires grad",
            ValueError,
            rf"{name} takes no gradient: pass {name}.detach\(\)",
            **{name: like.clone().requires_grad_()},
        )
        for name, like in {**ONES, **dict.fromkeys(NORMALIZERS, torch.tensor(1.0))}.items()
    ],
    # What spreads: as many dimensions, each of them equal or 1.
    bad(
        "class_mask of floats",
        TypeError,
        r"class_mask must be torch.bool, got torch.float32: call .bool\(\)",
        class_mask=torch.ones(3),
    ),
    bad("class_mask is sparse", TypeError, "class_mask must be a d", class_mask=MASK.to_sparse()),
    bad(
        "class_mask (N,)",
        ValueError,
        r"class_mask has shape \(4,\), .* over classification_output \(4, 3\): "
        r"for one value a sample give class_mask.view\(-1, 1\)",
        class_mask=MASK[:, 0],
    ),
    bad(
        "class_mask of other classes",
        ValueError,
        r"class_mask has shape \(4, 2\), which does not spread over classification_output "
        r"\(4, 3\): each dimension must be that of classification_output or 1",
        class_mask=MASK[:, :2],
    ),
    bad(
        "class_mask with a dimension too many",
        ValueError,
        r"class_mask has shape \(1, 4, 3\)",
        class_mask=MASK[None],
    ),
    bad(
        "regression_weight (N,)",
        ValueError,
        r"regression_weight has shape \(4,\), .* over regression_output \(4, 2\): "
        r"for one value a sample give regression_weight.view\(-1, 1\)",
        regression_weight=r[:, 0],
    ),
    bad(
        "regression_weight of (N, 1)",
        ValueError,
        r"regression_weight has shape \(4, 2\), which does not spread over regression_output "
        r"\(4, 1\): each dimension must be that of regression_output or 1",
        regression_weight=r,
        regression_output=r[:, :1],
        regression_targets=y[:, :1],
    ),
    bad(
        "classification_weight (N, 1)",
        ValueError,
        r"classification_weight has shape \(4, 1\), which does not spread over the positions of "
        r"classification_output \(4,\): each dimension must be that of the positions",
        classification_weight=r[:, :1],
    ),
    bad(
        "classification_weight (N,) of (N, d)",
        ValueError,
        r"classification_weight has shape \(4,\), .* \(4, 5\): for one value a sample give "
        r"classification_weight.view\(-1, 1\)",
        **{Z: torch.zeros(4, 3, 5), T: torch.zeros(4, 5, dtype=torch.int64)},
        classification_weight=r[:, 0],
    ),
    bad(
        "classification_weight 0-d",
        ValueError,
        r"classification_weight has shape \(\)",
        classification_weight=torch.tensor(1.0),
    ),
    # normalizers
    *[
        bad(
            f"{name} under {reduction}",
            ValueError,
            rf'{name} replaces the denominator of reduction="mean", got reduction=\'{reduction}\': '
            "leave one of them out",
            **{name: number},
            reduction=reduction,
        )
        for name, number in zip(NORMALIZERS, (4, torch.tensor(4.0)), strict=True)
        for reduction in ("sum", "none")
    ],
    *[
        bad(
            f"{name} {given!r}",
            TypeError,
            f"{name} must be a number or a 0-d tensor, got {given!r}",
            **{name: given},
        )
        for name, given in zip(NORMALIZERS, ("4", True), strict=True)
    ],
    bad(
        "regression_normalizer (1,)",
        ValueError,
        r"regression_normalizer must be a number or a 0-d tensor, got shape \(1,\)",
        regression_normalizer=torch.ones(1),
    ),
    bad(
        "classification_normalizer of a bool",
        TypeError,
        "classification_normalizer must not be torch.bool",
        classification_normalizer=torch.tensor(True),
    ),
    # alpha and loss_weights
    bad(
        "alpha (1,)",
        ValueError,
        r"alpha must be a float or a 0-d tensor, got .*\(1,\).*squeez",
        alpha=torch.tensor([0.5]),
    ),
    bad("alpha str", TypeError, "alpha must be a float or a 0-d tensor, got str", alpha="0.5"),
    bad("alpha bool", TypeError, "alpha must be a float .* got bool", alpha=True),
    bad("alpha None", TypeError, "alpha must be a float .* got NoneType", alpha=None),
    bad(
        "alpha int64",
        TypeError,
        "alpha must be floating-point, got torch.int64: call .float",
        alpha=torch.tensor(1),
    ),
    bad("alpha bool tensor", TypeError, "alpha must not be torch.bool", alpha=torch.tensor(True)),
    *[
        bad(
            f"alpha={alpha} beside loss_weights",
            ValueError,
            "give only one of them",
            alpha=alpha,
            loss_weights=(0.5, 0.5),
        )
        for alpha in (0.5, 0.3, torch.tensor(0.5))
    ],
    bad(
        "three weights",
        ValueError,
        r"loss_weights must be \(w_reg, w_cls\), got \(1.0, 2",
        loss_weights=(1.0, 2.0, 3.0),
    ),
    bad(
        "one weight",
        ValueError,
        r"loss_weights must be \(w_reg, w_cls\), got 1.0",
        loss_weights=1.0,
    ),
    bad(
        "weights of shape (3,)",
        ValueError,
        r"loss_weights must be .*shape \(2,\); got \(3,\)",
        loss_weights=torch.ones(3),
    ),
    bad(
        "weights of shape ()",
        ValueError,
        r"loss_weights must be .*shape \(2,\); got \(\)",
        loss_weights=torch.tensor(1.0),
    ),
    bad(
        "weights of int64",
        TypeError,
        "loss_weights must be floating-point, got torch.int64",
        loss_weights=torch.tensor([1, 2]),
    ),
    bad(
        "a pair of tensors",
        TypeError,
        r"loss_weights must hold two floats.*torch.stack",
        loss_weights=(torch.tensor(1.0), torch.tensor(2.0)),
    ),
    bad(
        "a pair of bools",
        TypeError,
        "loss_weights must hold two floats",
        loss_weights=(True, False),
    ),
    # scalars
    bad(
        "reduction",
        ValueError,
        "reduction must be one of 'mean', 'sum', 'none', got 'batchmean'",
        reduction="batchmean",
    ),
    bad("ignore_index", TypeError, "ignore_index must be an int, got 1.5", ignore_index=1.5),
    bad(
        "label_smoothing",
        ValueError,
        r"label_smoothing must lie in \[0, 1\], got 2.0",
        label_smoothing=2.0,
    ),
    bad(
        "nan_targets",
        ValueError,
        "nan_targets must be one of 'propagate', 'ignore', got 'skip'",
        nan_targets="skip",
    ),
    bad("nan_targets True", ValueError, "nan_targets must be one of .* got True", nan_targets=True),
    bad("empty", ValueError, "empty must be one of 'nan', 'zero', got 0", empty=0),
    bad(
        "inplace_gradient",
        TypeError,
        "inplace_gradient must be a bool, got 1",
        inplace_gradient=1,
    ),
]
