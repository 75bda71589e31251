"""Calls of `combined_loss` that must be refused: the error, and what its message says."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _public import batch

NAMES = (
    "regression_output",
    "classification_output",
    "regression_targets",
    "classification_targets",
)
Z, T = NAMES[1], NAMES[3]
WEIGHTS = ("class_weight", "regression_weight", "classification_weight")
OPTIONAL = (*WEIGHTS, "class_mask")
NORMALIZERS = ("regression_normalizer", "classification_normalizer")


def changed(device: torch.device | str = "cpu", **changes: Any) -> dict[str, Any]:
    """The arguments of a legal call - r, y (4, 2), z (4, 3), t (4,) - with `changes`."""
    arguments = dict(zip(NAMES, batch(device=device), strict=True)) | changes
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


class Bad(NamedTuple):
    """What is changed in a legal call, the error, and a pattern that its message holds."""

    label: str
    error: type[Exception]
    message: str
    changes: dict[str, Any]


def bad(label: str, error: type[Exception], message: str, /, **changes: Any) -> Bad:
    return Bad(label, error, message, changes)


r, z, y, t = batch()
BAD = [
    # Shapes: both are named, and the mend.
    bad(
        "(N, 1) against (N,)",
        ValueError,
        r"regression_targets has shape \(4,\), regression_output \(4, 1\): they must be equal, "
        r"nothing is broadcast; call regression_targets.reshape\(\(4, 1\)\)",
        regression_output=r[:, :1],
        regression_targets=y[:, 0],
    ),
    bad(
        "(N,) against (N, 1)",
        ValueError,
        r"regression_targets has shape \(4, 1\), regression_output \(4,\).*reshape\(\(4,\)\)",
        regression_output=r[:, 0],
        regression_targets=y[:, :1],
    ),
    bad(
        "() against (1,)",
        ValueError,
        r"shape \(1,\), regression_output \(\).*call regression_targets.reshape\(\(\)\)",
        regression_output=torch.tensor(1.0),
        regression_targets=torch.tensor([1.0]),
    ),
    bad(
        "a target is missing",
        ValueError,
        r"regression_targets has shape \(3, 2\), regression_output \(4, 2\).*its own target",
        regression_targets=y[:3],
    ),
    bad("0-d logits", ValueError, f"{Z} must be .*got a 0-d tensor", **{Z: torch.tensor(1.0)}),
    bad("no class", ValueError, rf"{Z} has shape \(4, 0\): no class at all", **{Z: z[:, :0]}),
    bad(
        "an index too few",
        ValueError,
        rf"{T} .* must have shape \(4,\) for {Z} of shape \(4, 3\); got \(3,\): one index a pos",
        **{T: t[:3]},
    ),
    bad(
        "indices (N, 1)",
        ValueError,
        rf"{T} .* shape \(4,\) for {Z} of shape \(4, 3\); got \(4, 1\)",
        **{T: t[:, None]},
    ),
    bad(
        "one-hot integers",
        ValueError,
        rf"{T} .* got \(4, 3\): for one-hot or probability targets call .float\(\)",
        **{T: F.one_hot(t, 3)},
    ),
    bad(
        "indices of (C,) that are not 0-d",
        ValueError,
        rf"{T} .* must have shape \(\) for {Z} of shape \(3,\); got \(1,\)",
        **{Z: z[0], T: t[:1]},
    ),
    bad(
        "indices of (N, C, d) without d",
        ValueError,
        rf"{T} .* must have shape \(4, 5\) for {Z} of shape \(4, 3, 5\); got \(4,\)",
        **{Z: torch.zeros(4, 3, 5)},
    ),
    # Float class indices that are not probabilities.
    bad(
        "float indices",
        ValueError,
        rf"{T} is torch.float32, .* shape of {Z}, \(4, 3\); got \(4,\): for class indices call .lo",
        **{T: t.float()},
    ),
    bad(
        "probabilities of other classes",
        ValueError,
        rf"{T} is torch.float32, .* \(4, 3\); got \(4, 2\): one a class",
        **{T: torch.full((4, 2), 0.5)},
    ),
    bad("float8 probabilities", TypeError, T, **{T: torch.zeros(4, 3).to(torch.float8_e5m2)}),
    bad(
        "ignore_index with probabilities",
        ValueError,
        f"ignore_index=1 goes with class indices; {T} holds probabilities",
        **{T: torch.full((4, 3), 0.5)},
        ignore_index=1,
    ),
    *[
        bad(f"{name} is bool", TypeError, f"{name} must not be torch.bool", **{name: given > 0})
        for name, given in zip(NAMES, (r, z, y, t), strict=True)
    ],
    *[
        bad(f"{name} is complex", TypeError, f"{name} must not be torch.c", **{name: 1j * x})
        for name, x in zip(NAMES, (r, z, y, t.float()), strict=True)
    ],
    *[
        bad(f"{name} is a list", TypeError, f"{name} must be a tensor, got list", **{name: [1.0]})
        for name in (*NAMES, *OPTIONAL)
    ],
    *[
        bad(f"{name} is None", TypeError, f"{name} must be a tensor, got NoneType", **{name: None})
        for name in NAMES
    ],
    *[
        bad(f"{name} is sparse", TypeError, f"{name} must be a dense", **{name: x.to_sparse()})
        for name, x in zip(NAMES, (r, z, y, t), strict=True)
    ],
    bad(
        "integer predictions",
        TypeError,
        "regression_output must be one of float32, bfloat16, float16, float64, got torch.int64",
        regression_output=r.long(),
    ),
    bad("integer logits", TypeError, f"{Z} must be one of .* got torch.int32", **{Z: z.int()}),
    bad(
        "under none, another N",
        ValueError,
        r"\(3, 2\) and classification_output \(4, 3\)",
        regression_output=r[:3],
        regression_targets=y[:3],
        reduction="none",
    ),
    bad(
        "under none, r 0-d",
        ValueError,
        r"\(\) and classification_output \(4, 3\)",
        regression_output=r[0, 0],
        regression_targets=y[0, 0],
        reduction="none",
    ),
]
