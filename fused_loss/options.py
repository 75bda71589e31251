"""From the arguments of a call to what the backends take: a checked spec, and tensors."""

from __future__ import annotations

import functools
from numbers import Real
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from fused_loss.checks import check
from fused_loss.spec import LossSpec, LossTensors

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """The options that every loss of the combined family has; see `combined_loss`."""

    class_weight: Tensor | None
    class_mask: Tensor | None
    regression_weight: Tensor | None
    classification_weight: Tensor | None
    regression_normalizer: float | Tensor | None
    classification_normalizer: float | Tensor | None
    ignore_index: int
    label_smoothing: float
    nan_targets: str
    empty: str
    reduction: str
    inplace_gradient: bool


class _DefaultAlpha(float):
    """The default of `alpha`, told apart from a 0.5 that the caller wrote."""


DEFAULT_ALPHA = _DefaultAlpha(0.5)


def arrange(
    regression_output: Tensor,
    classification_output: Tensor,
    regression_targets: Tensor,
    classification_targets: Tensor,
    alpha: float | Tensor = DEFAULT_ALPHA,
    loss_weights: tuple[float, float] | Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[LossSpec, LossTensors]:
    """The call as the backends take it: scalars apart from tensors, checked, masks spread.

    Raises:
        ValueError: Shapes, devices, dtypes or options that do not go together.
        TypeError: An argument of the wrong type or dtype.
        IndexError: Under `FUSED_LOSS_DEBUG=1`, a class index outside [0, C).
    """
    weights, pair = split_weights(alpha, loss_weights)
    numbers, normalizers = split_normalizers(options)
    spec = _spec(
        options.get("reduction", "mean"),
        options.get("ignore_index", -100),
        options.get("label_smoothing", 0.0),
        pair,
        False,
        options.get("nan_targets", "propagate"),
        options.get("empty", "nan"),
        numbers[0],
        numbers[1],
        options.get("inplace_gradient", False),
    )
    tensors = LossTensors(
        regression_output,
        classification_output,
        regression_targets,
        classification_targets,
        weights,
        options.get("class_weight"),
        options.get("class_mask"),
        options.get("regression_weight"),
        options.get("classification_weight"),
        *normalizers,
    )
    check(spec, tensors)
    if classification_targets.dtype == torch.uint64:
        tensors = tensors._replace(classification_targets=signed(classification_targets))
    return spec, tensors.spread()


_known_spec = functools.lru_cache(maxsize=256, typed=True)(LossSpec)


def _spec(*scalars: Any) -> LossSpec:
    """The spec of these fields, built and checked once for all calls that have them."""
    if torch.compiler.is_compiling():  # it warns of a cache, and goes around it
        return LossSpec(*scalars)
    try:
        hash(scalars)
    except TypeError:  # what is no scalar; the spec says which
        return LossSpec(*scalars)
    return _known_spec(*scalars)


def signed(indices: Tensor) -> Tensor:
    """uint64 as int64: what is too large stays too large, and is not taken for a negative index."""
    wrapped = indices.view(torch.int64)
    return wrapped.masked_fill(wrapped < 0, torch.iinfo(torch.int64).max)


def split_weights(
    alpha: float | Tensor, loss_weights: tuple[float, float] | Tensor | None
) -> tuple[Tensor | None, tuple[float, float] | None]:
    """The weights as a tensor, or as two floats.

    Raises:
        ValueError: Both were given, or a shape that does not fit.
        TypeError: Neither a float nor a tensor.
    """
    if loss_weights is None:
        if isinstance(alpha, Tensor):
            if alpha.dim():
                raise ValueError(
                    f"alpha must be a float or a 0-d tensor, got shape {tuple(alpha.shape)}; "
                    "call alpha.squeeze(), or pass a pair as loss_weights"
                )
            return alpha, None
        if isinstance(alpha, _DefaultAlpha):  # of which a compiled graph may make no float
            return None, (0.5, 0.5)
        if not _is_number(alpha):
            raise TypeError(f"alpha must be a float or a 0-d tensor, got {type(alpha).__name__}")
        w_reg = _as_float("alpha", alpha)
        return None, (w_reg, 1.0 - w_reg)
    if not isinstance(alpha, _DefaultAlpha):
        raise ValueError(
            "alpha and loss_weights are two ways to say the same: give only one of them"
        )
    if isinstance(loss_weights, Tensor):
        if loss_weights.shape != (2,):
            raise ValueError(
                f"loss_weights must be (w_reg, w_cls), shape (2,); got {tuple(loss_weights.shape)}"
            )
        return loss_weights, None
    if not isinstance(loss_weights, tuple | list) or len(loss_weights) != 2:
        raise ValueError(f"loss_weights must be (w_reg, w_cls), got {loss_weights!r}")
    w_reg, w_cls = loss_weights
    if not all(_is_number(w) for w in loss_weights):
        raise TypeError(
            "loss_weights must hold two floats, or be one tensor (2,): torch.stack((w_reg, w_cls))"
        )
    return None, (_as_float("loss_weights", w_reg), _as_float("loss_weights", w_cls))


def split_normalizers(
    options: Options,
) -> tuple[list[float | None], list[Tensor | None]]:
    """The two normalizers as numbers, and as tensors; regression first.

    Raises:
        TypeError: Neither a number nor a tensor.
    """
    numbers: list[float | None] = [None, None]
    tensors: list[Tensor | None] = [None, None]
    for place, value in enumerate(
        (options.get("regression_normalizer"), options.get("classification_normalizer"))
    ):
        if isinstance(value, Tensor):
            tensors[place] = value
        elif value is not None:
            if not _is_number(value):
                name = ("regression_normalizer", "classification_normalizer")[place]
                raise TypeError(f"{name} must be a number or a 0-d tensor, got {value!r}")
            name = ("regression_normalizer", "classification_normalizer")[place]
            numbers[place] = _as_float(name, value)
    return numbers, tensors


def _as_float(name: str, value: float) -> float:
    """An int may be too large to be one."""
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} is too large for a float: give one, such as 1e300") from error


def _is_number(value: object) -> bool:
    """A Python number or, as PyTorch takes them too, one of NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool)
