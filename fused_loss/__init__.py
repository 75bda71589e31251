"""The loss of models with two heads: alpha * MSE + (1 - alpha) * cross-entropy, in one pass."""

import fused_loss.signals  # noqa: F401  ahead of torch, which loses a Ctrl-C
from fused_loss.denominators import Denominators, loss_denominators
from fused_loss.drop_in import cross_entropy, mse_loss
from fused_loss.functional import combined_loss, task_losses
from fused_loss.kernels import backend
from fused_loss.modules import CombinedLoss, DualHead, UncertaintyWeightedLoss
from fused_loss.spec import Components

__version__ = "0.1.0"

__all__ = [
    "CombinedLoss",
    "Components",
    "Denominators",
    "DualHead",
    "UncertaintyWeightedLoss",
    "backend",
    "combined_loss",
    "cross_entropy",
    "loss_denominators",
    "mse_loss",
    "task_losses",
]
