"""Providers for the tests of the benchmark, right and wrong."""

import torch
from torch import Tensor

from fused_loss.bench import Case, Inputs, Provider
from fused_loss.bench.providers import eager_loss, from_loss
from fused_loss.bench.steps import Loss

CPU = torch.device("cpu")
SMALL = Case("small-12x5", "test", 12, 5, (3,), ignored=0.25)


def _gradient_off(case: Case) -> Loss:
    """The right value; a gradient of the logits that is 1% too large."""
    right = eager_loss(case)

    def loss(inputs: Inputs) -> Tensor:
        z = inputs.classification_output
        return right(inputs._replace(classification_output=z + 0.01 * (z - z.detach())))

    return loss


def _value_off(case: Case) -> Loss:
    right = eager_loss(case)
    return lambda inputs: right(inputs) + 1e-3


def _fails(case: Case) -> Loss:
    def loss(inputs: Inputs) -> Tensor:
        raise ArithmeticError("out of order\nwith details")

    return loss


def _refuses(case: Case) -> Loss:
    def loss(inputs: Inputs) -> Tensor:
        raise NotImplementedError("does not take this case")

    return loss


gradient_off = Provider("gradient-off", from_loss(_gradient_off))
value_off = Provider("value-off", from_loss(_value_off))
fails = Provider("fails", from_loss(_fails))
refuses = Provider("refuses", from_loss(_refuses))
