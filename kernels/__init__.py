"""The door to the backends: `forward`, `backward` and `scale`, and which of them runs."""

from fused_loss.kernels.dispatch import (
    BACKENDS,
    DIFFERENTIABLE,
    asked,
    backend,
    backward,
    batched,
    forward,
    gradient_waits,
    heads,
    plain,
    resolve,
    scale,
    transform,
)
from fused_loss.kernels.ops import compiled, weights_gradient

__all__ = [
    "BACKENDS",
    "DIFFERENTIABLE",
    "asked",
    "backend",
    "backward",
    "batched",
    "compiled",
    "forward",
    "gradient_waits",
    "heads",
    "plain",
    "resolve",
    "scale",
    "transform",
    "weights_gradient",
]
