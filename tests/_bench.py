"""Providers for the tests of the benchmark, right and wrong."""

import time
from dataclasses import replace

import torch
from torch import Tensor

from fused_loss.bench import PROVIDERS, Case, Inputs, Phase, Provider
from fused_loss.bench.programs import Prepared, Step
from fused_loss.bench.providers import eager_loss, from_loss
from fused_loss.bench.steps import Loss
from fused_loss.cli import main

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


def slowed(provider: Provider, factor: float) -> Provider:
    """The same provider, each step `factor` times as long: it is busy for the rest.

    To see that `fused-loss bench compare` finds a slower build, from the root of the repository:

        fused-loss bench --suite cpu --out build/a
        fused-loss bench --suite cpu --out build/b
        fused-loss bench compare build/a build/b    # exits 0
        PYTHONPATH=tests python -c "import _bench; _bench.bench_slowed(1.5, 'build/c')"
        fused-loss bench compare build/a build/c    # exits 1
    """

    def prepare(case: Case, device: torch.device) -> Prepared:
        steps = provider.prepare(case, device)

        def slow(phase: Phase) -> Step:
            step = steps(phase)

            def longer(inputs: Inputs) -> tuple[Tensor, ...]:
                start = time.perf_counter()
                outputs = step(inputs)
                end = start + factor * (time.perf_counter() - start)
                while time.perf_counter() < end:
                    pass
                return outputs

            return longer

        return slow

    return replace(provider, prepare=prepare)


def bench_slowed(factor: float, out: str, suite: str = "cpu") -> int:
    """`fused-loss bench` with this package's CPU backend slowed."""
    PROVIDERS["fused-auto"] = slowed(PROVIDERS["fused-auto"], factor)
    return main(["bench", "--suite", suite, "--out", out])


gradient_off = Provider("gradient-off", from_loss(_gradient_off))
value_off = Provider("value-off", from_loss(_value_off))
fails = Provider("fails", from_loss(_fails))
refuses = Provider("refuses", from_loss(_refuses))
