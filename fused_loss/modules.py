"""The `nn.Module`s: the losses with their options fixed, and `DualHead`, the model they train."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fused_loss.checks import check_constant
from fused_loss.functional import combined_loss
from fused_loss.options import DEFAULT_ALPHA, Options, split_weights
from fused_loss.spec import Components, LossSpec

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class FixedOptions(TypedDict, total=False):
        """The options of `combined_loss` that a module keeps."""

        class_weight: Tensor | None
        ignore_index: int
        label_smoothing: float
        nan_targets: str
        empty: str
        reduction: str
        return_components: bool
        inplace_gradient: bool

    class BatchTensors(TypedDict, total=False):
        """What changes from batch to batch beside outputs and targets; see `combined_loss`."""

        class_mask: Tensor | None
        regression_weight: Tensor | None
        classification_weight: Tensor | None
        regression_normalizer: float | Tensor | None
        classification_normalizer: float | Tensor | None


DEFAULTS = {
    "class_weight": None,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "nan_targets": "propagate",
    "empty": "nan",
    "reduction": "mean",
    "return_components": False,
    "inplace_gradient": False,
}

OF_A_BATCH = Options.__annotations__.keys() - DEFAULTS.keys()
FIXED = {*DEFAULTS, "alpha", "loss_weights"}


def _refuse_others(
    called: str, given: Iterable[str], legal: Container[str], elsewhere: Container[str], mend: str
) -> None:
    for name in given:
        if name not in legal:
            more = f": {mend}" if name in elsewhere else ""
            raise TypeError(f"{called} got an unexpected argument {name!r}{more}")


class _Loss(nn.Module):
    """A loss with its options fixed: the part that does not depend on how heads are weighted."""

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        nan_targets: str = "propagate",
        empty: str = "nan",
        reduction: str = "mean",
        return_components: bool = False,
        inplace_gradient: bool = False,
    ) -> None:
        super().__init__()
        check_constant("class_weight", class_weight)
        spec = LossSpec(
            reduction,
            ignore_index,
            label_smoothing,
            nan_targets=nan_targets,
            empty=empty,
            inplace_gradient=inplace_gradient,
        )
        self._register("class_weight", class_weight)
        self.ignore_index = spec.ignore_index
        self.label_smoothing = spec.label_smoothing
        self.nan_targets = nan_targets
        self.empty = empty
        self.reduction = reduction
        self.return_components = return_components
        self.inplace_gradient = inplace_gradient

    def _register(self, name: str, value: object) -> None:
        if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
            setattr(self, name, value)
        else:
            self.register_buffer(name, value)

    def _take_only(self, options: Iterable[str]) -> None:
        """Refuse an option that the constructor does not have."""
        mend = "it belongs to a batch, give it to the call"
        _refuse_others(type(self).__name__, options, DEFAULTS, OF_A_BATCH, mend)

    def _options(self, batch: Iterable[str] = ()) -> dict[str, Any]:
        """The fixed options, beside those that a call was given."""
        call, mend = f"a call of {type(self).__name__}", "it is fixed in the constructor"
        _refuse_others(call, batch, OF_A_BATCH, FIXED, mend)
        return {name: getattr(self, name) for name in DEFAULTS}

    def _weighting(self) -> list[str]:
        """How the heads are weighted, for `extra_repr`."""
        return []

    def extra_repr(self) -> str:
        """The weighting, and every option that is not at its default."""
        shown = self._weighting()
        for name, value in self._options().items():
            if isinstance(value, Tensor) or value != DEFAULTS[name]:
                shown.append(f"{name}={_brief(value)}")
        return ", ".join(shown)


class CombinedLoss(_Loss):
    """`combined_loss` with its options fixed.

    Args:
        alpha: As in `combined_loss`; registered as it is given: a Parameter is trained with the
            model, another tensor becomes a buffer, a float stays a float.
        loss_weights: As in `combined_loss`, registered in the same way.
        class_weight: (C,); a buffer, so it moves with `.to(device)` and is in the state dict.
        ignore_index: As in `combined_loss`.
        label_smoothing: As in `combined_loss`.
        nan_targets: As in `combined_loss`.
        empty: As in `combined_loss`.
        reduction: As in `combined_loss`.
        return_components: As in `combined_loss`.
        inplace_gradient: As in `combined_loss`.

    Raises:
        ValueError: An option outside its legal range; alpha and loss_weights together; a
            class_weight that requires grad.
        TypeError: An option of the wrong type.
    """

    alpha: float | Tensor
    loss_weights: tuple[float, float] | Tensor | None

    def __init__(
        self,
        alpha: float | Tensor = DEFAULT_ALPHA,
        *,
        loss_weights: tuple[float, float] | Tensor | None = None,
        **options: Unpack[FixedOptions],
    ) -> None:
        self._take_only(options)
        super().__init__(**options)
        _, pair = split_weights(alpha, loss_weights)
        if pair is not None and not isinstance(alpha, float | int):
            alpha = pair[0]  # a number of NumPy's, of which a compiled graph would make an array
        self._register("alpha", alpha)
        self._register("loss_weights", loss_weights)

    def forward(
        self,
        regression_output: Tensor,
        classification_output: Tensor,
        regression_targets: Tensor,
        classification_targets: Tensor,
        **batch: Unpack[BatchTensors],
    ) -> Tensor | tuple[Tensor, Components]:
        """The loss, or `(loss, components)`; shapes and errors as in `combined_loss`.

        Args:
            regression_output: As in `combined_loss`.
            classification_output: As in `combined_loss`.
            regression_targets: As in `combined_loss`.
            classification_targets: As in `combined_loss`.
            **batch: What changes from batch to batch: `class_mask`, `regression_weight`,
                `classification_weight`, `regression_normalizer`, `classification_normalizer`.
        """
        return combined_loss(
            regression_output,
            classification_output,
            regression_targets,
            classification_targets,
            self.alpha,
            loss_weights=self.loss_weights,
            **self._options(batch),
            **batch,
        )

    def _weighting(self) -> list[str]:
        if self.loss_weights is None:
            return [f"alpha={_brief(self.alpha)}"]
        return [f"loss_weights={_brief(self.loss_weights)}"]


class UncertaintyWeightedLoss(_Loss):
    """Both losses weighted by their uncertainty, which is learned with the model.

    With `s_r` and `s_c` the logarithms of the two tasks' variances, which start at 0:

        loss = 0.5·(exp(-s_r)·MSE + s_r) + exp(-s_c)·cross-entropy + 0.5·s_c

    Give the module's parameters to the optimizer beside the model's.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics", CVPR 2018: equation 7, and equation 10 for a softmax.

    Args:
        class_weight: As in `CombinedLoss`; so are the other options.
        ignore_index: As in `combined_loss`.
        label_smoothing: As in `combined_loss`.
        nan_targets: As in `combined_loss`.
        empty: As in `combined_loss`.
        reduction: As in `combined_loss`; under "none" every sample's loss holds both logarithms.
        return_components: As in `combined_loss`: the two losses before weighting.
        inplace_gradient: As in `combined_loss`.

    Attributes:
        regression_log_variance: s_r, a 0-d parameter.
        classification_log_variance: s_c, a 0-d parameter.

    Raises:
        ValueError, TypeError: As `CombinedLoss`.
    """

    def __init__(self, **options: Unpack[FixedOptions]) -> None:
        self._take_only(options)
        super().__init__(**options)
        self.regression_log_variance = nn.Parameter(torch.zeros(()))
        self.classification_log_variance = nn.Parameter(torch.zeros(()))

    def forward(
        self,
        regression_output: Tensor,
        classification_output: Tensor,
        regression_targets: Tensor,
        classification_targets: Tensor,
        **batch: Unpack[BatchTensors],
    ) -> Tensor | tuple[Tensor, Components]:
        """The loss, or `(loss, components)`; arguments, shapes and errors as in `CombinedLoss`."""
        s_r, s_c = self.regression_log_variance, self.classification_log_variance
        result = combined_loss(
            regression_output,
            classification_output,
            regression_targets,
            classification_targets,
            loss_weights=torch.stack((0.5 * torch.exp(-s_r), torch.exp(-s_c))),
            **self._options(batch),
            **batch,
        )
        penalty = 0.5 * (s_r + s_c)
        if self.return_components:
            loss, components = result
            return loss + penalty.to(loss.dtype), components
        return result + penalty.to(result.dtype)


def _brief(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__}{tuple(value.shape)}"
    return repr(float(value)) if isinstance(value, float) else repr(value)


class DualHead(nn.Module):
    """A trunk with a regression head and a classification head.

    Args:
        trunk: (N, *) -> features.
        regression_head: Features -> predictions (N, D).
        classification_head: Features -> logits (N, C).
    """

    def __init__(
        self, trunk: nn.Module, regression_head: nn.Module, classification_head: nn.Module
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.regression_head = regression_head
        self.classification_head = classification_head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, *) -> (regression_output (N, D), classification_output (N, C))."""
        features = self.trunk(x)
        return self.regression_head(features), self.classification_head(features)
