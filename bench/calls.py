"""Public calls on tensors without memory, and what they launch.

The launcher itself turns a call into launches, so nothing of its logic is copied here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import fused_loss
from fused_loss.bench.steps import passed_on
from fused_loss.kernels import dispatch
from fused_loss.spec import class_axis

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
OF_COMBINED = (
    "class_mask", "position_weight", "element_weight", "missing", "normalizers", "inplace",
)  # fmt: skip
PROCESSORS = 132  # of an H100 and an H200
SAMPLES = {"few": 100, "many": 1 << 17, "huge": 1 << 31}  # of which the last needs 64-bit scalars


class Call(NamedTuple):
    """One call of `combined_loss`, `cross_entropy` or `mse_loss`, and its backward."""

    heads: str = "both"  # or "classification", "regression": one of them alone
    reduction: str = "mean"
    targets: str = "int64"  # a dtype of indices; "soft": the logits' dtype; "soft32"
    class_weight: str = ""  # "like" the logits, or "f32"
    smoothing: float = 0.0
    ignore_index: int = -100
    weights: str = "floats"
    grads: str = "rz"
    class_mask: str = ""  # "rows": one a position; "classes": (C,)
    position_weight: bool = False
    element_weight: str = ""  # "full", or "sample": (N, 1)
    missing: bool = False  # nan_targets="ignore"
    normalizers: str = ""  # "number", "tensor"; "of r" or "of z": a tensor for one head
    inplace: bool = False
    r_dtype: str = "f32"
    z_dtype: str = "f32"
    r_layout: str = "columns"
    layout: str = "rows"
    classes: int = 1000
    samples: str = "few"
    retained: bool = False

    def normal(self) -> Call:
        """The same call with every option that cannot matter, or is illegal, at its default."""
        default, changes = Call(), {}
        if self.heads != "both":
            for name in OF_COMBINED:
                changes[name] = getattr(default, name)
        if self.heads == "regression":
            unused = ("targets", "class_weight", "smoothing", "ignore_index", "weights", "z_dtype")
            for name in (*unused, "layout", "classes"):
                changes[name] = getattr(default, name)
            changes["grads"] = self.grads.replace("z", "")
        elif self.heads == "classification":  # as PyTorch: two index dtypes, one float dtype
            for name in ("weights", "r_dtype", "r_layout"):
                changes[name] = getattr(default, name)
            changes["grads"] = self.grads.replace("r", "")
            changes["targets"] = {"int32": "int64", "soft32": "soft"}.get(
                self.targets, self.targets
            )
            changes["class_weight"] = self.class_weight and "like"
        if self.targets.startswith("soft"):
            changes["ignore_index"] = default.ignore_index
        if self.reduction != "mean":
            changes["normalizers"] = default.normalizers
        if "z" not in self.grads:
            changes["inplace"] = default.inplace
        if self.heads != "regression" and self.layout == "one":
            changes["samples"] = default.samples
        if not changes.get("grads", self.grads):
            changes["retained"] = False
        return self._replace(**changes)

    @property
    def vectors(self) -> bool:
        """Whether every access to logits, probabilities and gradient is to move 128 bits.

        Rows of a multiple of 16 bytes, adjacent and dense, from an aligned address. Not for sums in
        float64: their tiles are so small that a thread may hold less than 16 bytes.
        """
        aligned = self.classes * DTYPES[self.z_dtype].itemsize % 16 == 0
        vectors = self.heads != "regression" and self.layout == "rows" and aligned
        return vectors and "f64" not in (self.z_dtype, self.r_dtype)

    def run(self) -> None:
        """Make the call on tensors without memory; the caller has replaced the launch."""
        r, y = self._regression()
        z, t = self._classification()
        weight = None
        if self.class_weight:
            dtype = self.z_dtype if self.class_weight == "like" else self.class_weight
            weight = _empty(self.classes, dtype=DTYPES[dtype])
        options: dict[str, Any] = {
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.smoothing,
        }
        with fused_loss.backend("triton"):
            if self.heads == "regression":
                loss = fused_loss.mse_loss(r, y, reduction=self.reduction)
            elif self.heads == "classification":
                loss = fused_loss.cross_entropy(z, t, weight, **options)
            else:
                options |= self._of_combined(r, z)
                if self.weights != "floats":
                    name, shape = {"alpha": ("alpha", ()), "pair": ("loss_weights", (2,))}[
                        self.weights
                    ]
                    options[name] = _empty(*shape)
                loss = fused_loss.combined_loss(
                    r, passed_on(z), y, t, class_weight=weight, **options
                )
        if self.grads:
            loss.sum().backward(retain_graph=self.retained)

    def _of_combined(self, r: Tensor, z: Tensor) -> dict[str, Any]:
        """The options that only the combined loss has."""
        classes, positions = class_axis(z)
        options: dict[str, Any] = {
            "nan_targets": "ignore" if self.missing else "propagate",
            "inplace_gradient": self.inplace,
        }
        if self.class_mask:
            shape = (classes,) if self.class_mask == "classes" else z.shape
            options["class_mask"] = _empty(*shape, dtype=torch.bool)
        if self.position_weight:
            options["classification_weight"] = _empty(*positions)
        if self.element_weight:
            columns = r.shape[1:] if self.element_weight == "full" else [1] * (r.dim() - 1)
            options["regression_weight"] = _empty(len(r), *columns)
        if self.normalizers:
            number = 3.0 if self.normalizers == "number" else _empty(dtype=torch.int64)
            if self.normalizers != "of z":
                options["regression_normalizer"] = number
            if self.normalizers != "of r":
                options["classification_normalizer"] = number
        return options

    def _regression(self) -> tuple[Tensor, Tensor]:
        n, dtype = SAMPLES[self.samples], DTYPES[self.r_dtype]
        wide = {"vector": (), "columns": (16,), "wide": (256,), "strided": (32,), "sliced": (32,)}
        shape = (n, *wide[self.r_layout])
        r, y = _empty(*shape, dtype=dtype), _empty(*shape, dtype=dtype)
        if self.r_layout == "strided":
            r, y = r[:, ::2], y[:, ::2]
        elif self.r_layout == "sliced":  # as where one layer makes both heads
            r, y = r[:, :16], y[:, :16]
        return r.requires_grad_("r" in self.grads), y

    def _classification(self) -> tuple[Tensor, Tensor]:
        n, c, dtype = SAMPLES[self.samples], self.classes, DTYPES[self.z_dtype]
        z = {
            "rows": lambda: _empty(n, c, dtype=dtype),
            "padded": lambda: _empty(n, c + 1, dtype=dtype)[:, 1:],
            "shifted": lambda: _empty(n, c + 16, dtype=dtype)[:, 1 : c + 1],
            "transposed": lambda: _empty(c, n, dtype=dtype).mT,
            "spatial": lambda: _empty(n, c, 8, 8, dtype=dtype),
            "one": lambda: _empty(c, dtype=dtype),
        }[self.layout]()
        z.requires_grad_("z" in self.grads)
        if self.targets.startswith("soft"):
            soft = torch.float32 if self.targets == "soft32" else dtype
            return z, torch.empty_like(z, dtype=soft, requires_grad=False)
        _, positions = class_axis(z)
        return z, _empty(*positions, dtype=getattr(torch, self.targets))


@contextmanager
def launches_go_to(launch: Callable[..., None]) -> Iterator[None]:
    """Replace the launch, and let tensors without a device be taken for tensors on an H200."""
    from fused_loss.kernels import triton_grid, triton_launch, triton_plan  # loads Triton

    with (
        mock.patch.object(triton_launch, "launch", launch),
        mock.patch.object(triton_grid, "processors", return_value=PROCESSORS),
        mock.patch.object(triton_plan, "processors", return_value=PROCESSORS),
        mock.patch.object(dispatch, "_demand_triton"),
    ):
        yield


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
