"""The cases that every backend is held to: a `Case` is a choice of options, `Problem` its data."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # set by conftest where there is no GPU

# (backend, device): where the closed-form backends run. Triton takes CPU tensors in its
# interpreter only, which cannot be loaded beside its compiler.
TRITON_PLACES = [pytest.param("triton", "cuda", marks=pytest.mark.gpu, id="triton-cuda")]
if INTERPRETED:
    TRITON_PLACES.insert(0, pytest.param("triton", "cpu", id="triton-cpu"))
EAGER_PLACES = [
    pytest.param("eager", "cpu", id="eager-cpu"),
    pytest.param("eager", "cuda", marks=pytest.mark.gpu, id="eager-cuda"),
]
PLACES = [*EAGER_PLACES, *TRITON_PLACES]

REDUCTIONS = ("mean", "sum", "none")
LAYOUTS = ("C", "NC", "NCd")
# Hard targets without an ignored one, with -100, with a class that is ignored; soft targets.
TARGETS = ("hard", "hard-100", "hard-class", "soft")
WEIGHTINGS = ("alpha", "alpha-tensor", "pair", "pair-tensor")
# One mask for all; one a position, with room for each target; one that forbids targets, and every
# class of the last position.
MASKS = ("", "classes", "positions", "trap")
WEIGHTS = ("", "full", "sample")  # a weight an element or position, or a sample; the first is 0
MISSING = ("", "some", "all")  # regression targets that are NaN
NORMALIZERS = ("", "numbers", "tensors")
CLASS_WEIGHT = (2.0, 0.5, 1.5, 0.25, 3.0)
SHAPES = {  # r, z
    "C": ((3,), (5,)),
    "NC": ((4, 2), (4, 5)),
    "NCd": ((2, 2, 2), (2, 5, 3)),
}


def class_axis(z_shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """C, and the shape of the positions."""
    return (z_shape[0], ()) if len(z_shape) == 1 else (z_shape[1], z_shape[:1] + z_shape[2:])


class Problem(NamedTuple):
    """The tensors and the keywords of one call; `weights` are those of `keywords`, as floats."""

    r: Tensor
    z: Tensor
    y: Tensor
    t: Tensor
    keywords: dict[str, Any]
    weights: tuple[float, float]
    grad_output: Tensor  # () or (N,), in the dtype of the loss


@dataclass(frozen=True)
class Case:
    """A choice of every option."""

    reduction: str = "mean"
    layout: str = "NC"
    targets: str = "hard"
    weighted: bool = False
    smoothing: float = 0.0
    weighting: str = "alpha"
    upstream: str = "one"  # or "other": a grad_output that is not 1
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32)
    target_dtype: torch.dtype | None = None  # of y and of probabilities; None: the outputs' own
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = field(default=None)
    mask: str = ""
    regression_weight: str = ""
    position_weight: str = ""
    missing: str = ""
    normalizers: str = ""  # of "mean" alone
    empty: str = "nan"
    inplace: bool = False

    def __str__(self) -> str:
        words = [self.reduction, self.layout, self.targets, self.weighting]
        words += ["weighted"] * self.weighted + ["smooth"] * bool(self.smoothing)
        words += ["upstream"] * (self.upstream != "one")
        for name in ("mask", "regression_weight", "position_weight", "missing", "normalizers"):
            value = getattr(self, name)
            words += [f"{name.rpartition('_')[0] or name}:{value}"] * bool(value)
        words += ["zero"] * (self.empty == "zero") + ["inplace"] * self.inplace
        kinds = [*self.dtypes, self.target_dtype] if self.target_dtype else list(self.dtypes)
        if set(kinds) != {F32}:
            words += [str(kind).removeprefix("torch.") for kind in kinds]
        return "-".join(words)

    @property
    def loss_dtype(self) -> torch.dtype:
        return F64 if F64 in self.dtypes else F32

    @property
    def gradient_waits(self) -> bool:
        """Whether the gradient is computed in the backward pass."""
        return self.reduction == "none" or F16 in self.dtypes

    def problem(self, device: str = "cpu") -> Problem:
        """Data from a seed that is the case's own."""
        random = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        r_dtype, z_dtype = self.dtypes
        r_shape, z_shape = self.shapes or SHAPES[self.layout]

        def normal(shape: Sequence[int], dtype: torch.dtype, spread: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=random, dtype=F64) * spread
            return values.to(device, dtype)

        keywords: dict[str, Any] = {}
        if self.reduction != "mean":
            keywords["reduction"] = self.reduction
        if self.smoothing:
            keywords["label_smoothing"] = self.smoothing
        if self.weighted:
            every = torch.tensor(CLASS_WEIGHT).repeat(z_shape[-1] + z_shape[0])
            keywords["class_weight"] = every[: class_axis(z_shape)[0]].to(device, z_dtype)
        t = self._targets(z_shape, random, keywords)
        if t.is_floating_point():
            t = t.to(self.target_dtype or z_dtype)
        r, z = normal(r_shape, r_dtype), normal(z_shape, z_dtype, 3.0)
        y = normal(r_shape, self.target_dtype or r_dtype)
        weights = self._weights(keywords, device)
        grad_output = self._grad_output(z_shape, random).to(device)
        if self.mask:
            mask, t = self._mask(z_shape, t, random, keywords.get("ignore_index", -100))
            keywords["class_mask"] = mask.to(device)
        if self.missing:
            keywords["nan_targets"] = "ignore"
            absent = torch.rand(r_shape, generator=random) < 0.4
            absent.view(-1)[0] = True
            absent |= self.missing == "all"
            y = y.masked_fill(absent.to(device), torch.nan)
        keywords |= self._weights_of_elements(random, device)
        return Problem(r, z, y, t.to(device), keywords, weights, grad_output)

    def _mask(
        self, z_shape: tuple[int, ...], t: Tensor, random: torch.Generator, ignored: int
    ) -> tuple[Tensor, Tensor]:
        """The mask, and targets that it lets through; under "trap" those that there are."""
        classes, positions = class_axis(z_shape)
        if self.mask == "classes":
            mask = torch.arange(classes) % 3 != 1  # classes 1, 4, ... are impossible
            if not t.is_floating_point():
                return mask, t.where((t == ignored) | mask[t.clamp(min=0)], torch.zeros_like(t))
            return mask, t * mask.view(-1, *[1] * (t.dim() - 2 if t.dim() > 1 else 0))
        mask = torch.rand(z_shape, generator=random) < 0.6
        by_position = mask.movedim(1, -1) if len(z_shape) > 1 else mask  # a view: (N, d1, ..., C)
        if self.mask == "trap":
            if positions:
                by_position[(-1,) * len(positions)] = False
            return mask, t
        if t.is_floating_point():
            return mask, t * mask
        by_position.scatter_(-1, t.where(t != ignored, torch.zeros_like(t)).unsqueeze(-1), True)
        return mask, t

    def _weights_of_elements(self, random: torch.Generator, device: str) -> dict[str, Any]:
        """`regression_weight` and its like: weights of thirds, the first one 0; normalizers."""
        keywords: dict[str, Any] = {}
        r_shape, z_shape = self.shapes or SHAPES[self.layout]
        for name, kind, shape, dtype in (
            ("regression_weight", self.regression_weight, r_shape, self.dtypes[0]),
            ("classification_weight", self.position_weight, class_axis(z_shape)[1], self.dtypes[1]),
        ):
            if kind:
                spread = shape[:1] + (1,) * len(shape[1:]) if kind == "sample" else shape
                weight = torch.rand(spread, generator=random, dtype=F64)
                if weight.numel() > 1:
                    weight.view(-1)[0] = 0
                keywords[name] = weight.to(device, dtype)
        if self.normalizers and self.reduction == "mean":
            numbers: tuple[Any, Any] = (3.5, 7)
            if self.normalizers == "tensors":
                numbers = torch.tensor(3.5, device=device), torch.tensor(7.0, device=device)
            for head, number in zip(("regression", "classification"), numbers, strict=True):
                keywords[f"{head}_normalizer"] = number
        if self.empty != "nan":
            keywords["empty"] = self.empty
        if self.inplace:
            keywords["inplace_gradient"] = True
        return keywords

    def _targets(
        self, z_shape: tuple[int, ...], random: torch.Generator, keywords: dict[str, Any]
    ) -> Tensor:
        if self.targets == "soft":  # of a mass that is not 1
            return torch.rand(z_shape, generator=random, dtype=F64)
        classes, positions = class_axis(z_shape)
        t = torch.randint(0, classes, positions, generator=random)
        if self.targets == "hard":
            return t
        ignored = -100
        if self.targets == "hard-class":
            ignored = keywords["ignore_index"] = classes - 1
            t = t.remainder(max(classes - 1, 1))
        mask = torch.rand(positions, generator=random) < 0.4
        if t.dim() == 0 or not mask.any():
            mask.view(-1)[-1] = True
        return t.masked_fill(mask, ignored)

    def _weights(self, keywords: dict[str, Any], device: str) -> tuple[float, float]:
        """0.3125 and such: exact in every dtype."""
        tensor = self.weighting.endswith("tensor")
        if self.weighting.startswith("alpha"):
            keywords["alpha"] = torch.tensor(0.3125, device=device) if tensor else 0.3125
            return 0.3125, 0.6875
        pair = (0.75, 1.25)
        keywords["loss_weights"] = torch.tensor(pair, device=device) if tensor else pair
        return pair

    def _grad_output(self, z_shape: tuple[int, ...], random: torch.Generator) -> Tensor:
        shape = z_shape[:1] if self.reduction == "none" and len(z_shape) > 1 else ()
        if self.upstream == "one":
            return torch.ones(shape, dtype=self.loss_dtype)
        return torch.randn(shape, generator=random, dtype=F64).to(self.loss_dtype)


EVERY_OPTION = Case(
    targets="hard-100",
    weighted=True,
    smoothing=0.25,
    weighting="alpha-tensor",
    upstream="other",
    mask="positions",
    regression_weight="full",
    position_weight="full",
    missing="some",
    normalizers="tensors",
)


def _every_option() -> list[Case]:
    """reduction × layout × targets × class_weight × label_smoothing, in float32.

    The weighting and the grad_output go round, so that each meets each option.
    """
    options = product(REDUCTIONS, LAYOUTS, TARGETS, (False, True), (0.0, 0.25))
    return [
        Case(*chosen, WEIGHTINGS[(i + i // 4 + i // 48) % 4], ("one", "other")[(i // 4) % 2])
        for i, chosen in enumerate(options)
    ]


def _every_mask(factors: Sequence[Sequence[Any]]) -> list[Case]:
    """The product of reduction, targets, mask and so on; what is left goes round, in float32."""
    cases = []
    for i, (reduction, targets, mask, *more) in enumerate(product(REDUCTIONS, TARGETS, *factors)):
        k = i + i // 3 + i // 12
        layout, weighted, smoothing, position_weight = more or (
            LAYOUTS[i % 3], bool(k % 2), (0.0, 0.25)[k // 2 % 2], WEIGHTS[k % 3],
        )  # fmt: skip
        cases.append(
            Case(
                *(reduction, layout, targets, weighted, smoothing),
                *(WEIGHTINGS[k % 4], ("one", "other")[i % 2]),
                mask=mask,
                regression_weight=WEIGHTS[k // 3 % 3],
                position_weight=position_weight,
                missing=MISSING[k // 2 % 3],
                normalizers=NORMALIZERS[k // 5 % 3],
                empty=("nan", "zero")[k // 7 % 2],
            )
        )
    return cases


def pairwise(factors: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows in which every two levels of every two factors meet.

    Each row starts from the first pair that is not covered; every other factor then takes the level
    that covers most.
    """
    places = range(len(factors))
    open_pairs = {
        (i, a, j, b)
        for i, j in combinations(places, 2)
        for a, b in product(range(len(factors[i])), range(len(factors[j])))
    }

    def gain(row: dict[int, int], j: int, b: int) -> int:
        return sum(((i, a, j, b) if i < j else (j, b, i, a)) in open_pairs for i, a in row.items())

    rows = []
    while open_pairs:
        i, a, j, b = min(open_pairs)
        row = {i: a, j: b}
        for place in places:
            if place not in row:
                levels = range(len(factors[place]))
                row[place] = max(levels, key=lambda level: (gain(row, place, level), -level))
        rows.append(tuple(factors[place][row[place]] for place in places))
        open_pairs -= {(i, row[i], j, row[j]) for i, j in combinations(places, 2)}
    return rows


DTYPES = (
    (F64, F64), (BF16, BF16), (F16, F16), (F32, BF16), (BF16, F32),
    (F16, F32), (F32, F16), (F16, BF16), (F64, F32), (BF16, F64),
)  # fmt: skip

PRODUCT = _every_option() + _every_mask([MASKS])
# The exhaustive sweep of what a position of the logits can meet.
EXHAUSTIVE = _every_mask([MASKS, LAYOUTS, (False, True), (0.0, 0.25), WEIGHTS])
FACTORS: dict[str, Sequence[Any]] = {
    "dtypes": DTYPES,
    "reduction": REDUCTIONS,
    "layout": LAYOUTS,
    "targets": TARGETS,
    "weighting": WEIGHTINGS,
    "weighted": (False, True),
    "smoothing": (0.0, 0.25),
    "upstream": ("one", "other"),
    "target_dtype": (None, F32),
    "mask": MASKS,
    "regression_weight": WEIGHTS,
    "position_weight": WEIGHTS,
    "missing": MISSING,
    "normalizers": NORMALIZERS,
    "empty": ("nan", "zero"),
    "inplace": (False, True),
}
COVERING = [
    Case(**dict(zip(FACTORS, row, strict=True))) for row in pairwise(list(FACTORS.values()))
]
