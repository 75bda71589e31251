"""The `nn.Module`s: `CombinedLoss` around `combined_loss`, and `DualHead`, the model it trains."""

from __future__ import annotations

from torch import Tensor, nn

from fused_loss.checks import check_constant
from fused_loss.functional import DEFAULT_ALPHA, combined_loss, split_weights
from fused_loss.spec import Components, LossSpec


class CombinedLoss(nn.Module):
    """`combined_loss` with its options fixed.

    Args:
        alpha: As in `combined_loss`; registered as it is given: a Parameter is trained with the
            model, another tensor becomes a buffer, a float stays a float.
        loss_weights: As in `combined_loss`, registered in the same way.
        class_weight: (C,); a buffer, so it moves with `.to(device)` and is in the state dict.
        ignore_index: As in `combined_loss`.
        label_smoothing: As in `combined_loss`.
        reduction: As in `combined_loss`.
        return_components: As in `combined_loss`.

    Raises:
        ValueError: An option outside its legal range; alpha and loss_weights together; a
            class_weight that requires grad.
        TypeError: An option of the wrong type.
    """

    alpha: float | Tensor
    loss_weights: tuple[float, float] | Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        alpha: float | Tensor = DEFAULT_ALPHA,
        *,
        loss_weights: tuple[float, float] | Tensor | None = None,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        return_components: bool = False,
    ) -> None:
        super().__init__()
        split_weights(alpha, loss_weights)
        check_constant("class_weight", class_weight)
        LossSpec(reduction, ignore_index, label_smoothing)
        self._register("alpha", alpha)
        self._register("loss_weights", loss_weights)
        self._register("class_weight", class_weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.return_components = return_components

    def _register(self, name: str, value: object) -> None:
        if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
            setattr(self, name, value)
        else:
            self.register_buffer(name, value)

    def forward(
        self,
        regression_output: Tensor,
        classification_output: Tensor,
        regression_targets: Tensor,
        classification_targets: Tensor,
    ) -> Tensor | tuple[Tensor, Components]:
        """The loss, or `(loss, components)`; shapes and errors as in `combined_loss`."""
        return combined_loss(
            regression_output,
            classification_output,
            regression_targets,
            classification_targets,
            self.alpha,
            loss_weights=self.loss_weights,
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            return_components=self.return_components,
        )

    def extra_repr(self) -> str:
        """The weighting, and every option that is not at its default."""
        shown = [f"alpha={_brief(self.alpha)}"]
        if self.loss_weights is not None:
            shown = [f"loss_weights={_brief(self.loss_weights)}"]
        defaults = {
            "class_weight": None,
            "ignore_index": -100,
            "label_smoothing": 0.0,
            "reduction": "mean",
            "return_components": False,
        }
        for name, default in defaults.items():
            value = getattr(self, name)
            if isinstance(value, Tensor) or value != default:
                shown.append(f"{name}={_brief(value)}")
        return ", ".join(shown)


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
