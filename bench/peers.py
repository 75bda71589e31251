"""Other people's cross-entropies, each with `F.mse_loss` and the weighted sum around it.

They need a GPU and their own package; what is not installed is absent from a run, which says how to
get it. Imported at their first use, so that the registry needs nothing but torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fused_loss.bench.cases import Case, Inputs
from fused_loss.bench.steps import Loss

# Named, so that a report says why they are not compared.
LEFT_OUT = {
    "cut-cross-entropy": "takes embeddings and the weights of the last layer, and never writes the "
    "logits; every case here begins with logits, as where they are wanted for more than the loss. "
    "A comparison would be of a layer and its loss with a loss alone. Where nobody needs the "
    "logits it spares their memory, which no loss of logits can: pip install cut-cross-entropy"
}

CrossEntropy = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def with_mse(cross_entropy_of: Callable[[Case], CrossEntropy]) -> Callable[[Case], Loss]:
    """A loss of both heads around somebody's cross-entropy."""

    def loss_of(case: Case) -> Loss:
        cross_entropy, alpha = cross_entropy_of(case), case.alpha

        def loss(inputs: Inputs) -> Tensor:
            r, z, y, t, weight = inputs
            return alpha * F.mse_loss(r, y) + (1 - alpha) * cross_entropy(z, t, weight)

        return loss

    return loss_of


def liger(case: Case) -> CrossEntropy:
    """liger-kernel's; it writes the gradient over the logits."""
    _only(case, soft_targets=False, positions=False)
    from liger_kernel.transformers.functional import liger_cross_entropy

    smoothing = case.label_smoothing
    return lambda z, t, weight: liger_cross_entropy(z, t, weight, label_smoothing=smoothing)


def quack(case: Case) -> CrossEntropy:
    """quack-kernels'."""
    _only(case, soft_targets=False, positions=False, label_smoothing=False)
    from quack.cross_entropy import cross_entropy

    return lambda z, t, weight: cross_entropy(z, t, weight=weight)


def flag_gems(case: Case) -> CrossEntropy:
    """FlagGems'."""
    from flag_gems.fused.cross_entropy_loss import cross_entropy_loss

    smoothing = case.label_smoothing
    return lambda z, t, weight: cross_entropy_loss(z, t, weight, label_smoothing=smoothing)


def _only(case: Case, **taken: bool) -> None:
    """Refuse a case with an option that a peer does not take.

    Raises:
        NotImplementedError: Naming the option.
    """
    for option, supported in taken.items():
        if getattr(case, option) and not supported:
            raise NotImplementedError(f"takes no {option.replace('_', ' ')}")
