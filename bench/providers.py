"""What computes a case's loss, every way there is, and a copy of the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss import backend, combined_loss
from fused_loss.bench import needs, peers
from fused_loss.bench.cases import DTYPES, LOSS_PHASES, Case, Inputs, Phase
from fused_loss.bench.programs import Prepared, Provider
from fused_loss.bench.steps import (
    Loss,
    OnCopies,
    Replayed,
    TrainingStep,
    copy_step,
    passed_on,
    step_of,
)
from fused_loss.bench.stored import ON_REQUEST


def from_loss(loss_of: Callable[[Case], Loss]) -> Callable[[Case, torch.device], Prepared]:
    """How a provider is prepared from what makes a loss for a case."""

    def prepare(case: Case, device: torch.device) -> Prepared:
        loss = loss_of(case)
        return lambda phase: step_of(loss, case, phase, device)

    return prepare


def eager_loss(case: Case) -> Loss:
    """The obvious composition of PyTorch's own two losses."""
    alpha, smoothing = case.alpha, case.label_smoothing

    def loss(inputs: Inputs) -> Tensor:
        r, z, y, t, weight = inputs
        mse = F.mse_loss(r, y)
        return alpha * mse + (1 - alpha) * F.cross_entropy(z, t, weight, label_smoothing=smoothing)

    return loss


def widened_loss(case: Case) -> Loss:
    """The same on `logits.float()`, as people write it for half-precision models."""
    eager = eager_loss(case)

    def loss(inputs: Inputs) -> Tensor:
        weight, targets = inputs.class_weight, inputs.classification_targets
        return eager(
            Inputs(
                inputs.regression_output.float(),
                inputs.classification_output.float(),
                inputs.regression_targets.float(),
                targets.float() if case.soft_targets else targets,
                None if weight is None else weight.float(),
            )
        )

    return loss


def _half(case: Case) -> bool:
    return DTYPES[case.logits_dtype].itemsize < 4


def compiled_loss(case: Case, mode: str | None = None) -> Loss:
    """The same under `torch.compile`, specialised to the case's shapes."""
    return torch.compile(eager_loss(case), fullgraph=True, dynamic=False, mode=mode)


def fused_loss(case: Case) -> Loss:
    """This package's `combined_loss`."""
    alpha, smoothing = case.alpha, case.label_smoothing

    def loss(inputs: Inputs) -> Tensor:
        r, z, y, t, weight = inputs
        return combined_loss(r, z, y, t, alpha, class_weight=weight, label_smoothing=smoothing)

    return loss


def inplace_loss(case: Case) -> Loss:
    """The same with `inplace_gradient=True`, on logits that are no leaf, as a model's are not."""
    alpha, smoothing = case.alpha, case.label_smoothing

    def loss(inputs: Inputs) -> Tensor:
        r, z, y, t, weight = inputs
        return combined_loss(
            r,
            passed_on(z),
            y,
            t,
            alpha,
            class_weight=weight,
            label_smoothing=smoothing,
            inplace_gradient=True,
        )

    return loss


def _in_place(case: Case, device: torch.device) -> Prepared:
    return lambda phase: OnCopies(step_of(inplace_loss(case), case, phase, device))


def _is_large(case: Case) -> bool:
    """Whether its logits are worth their memory: a million of them or more, in rows of 1000."""
    return case.C >= 1000 and math.prod(case.logits_shape) >= 1 << 20


def _copy(case: Case, device: torch.device) -> Prepared:
    return lambda phase: copy_step(case, phase, device)


def _model_alone(case: Case, device: torch.device) -> Prepared:
    return lambda phase: TrainingStep(case, device, None)


def _replayed(provider: Provider) -> Provider:
    """The same provider as a CUDA graph: one launch, whatever it launches itself."""

    def prepare(case: Case, device: torch.device) -> Prepared:
        steps = provider.prepare(case, device)
        return lambda phase: Replayed(steps(phase))

    def available(device: torch.device) -> str | None:
        if device.type != "cuda":
            return "CUDA graphs need a GPU"
        return provider.available(device)

    # an optimizer within a graph needs `capturable=True`, which changes what is measured
    phases = tuple(phase for phase in provider.phases if phase is not Phase.STEP)
    return replace(
        provider,
        name=f"{provider.name}-graph",
        prepare=prepare,
        available=available,
        phases=phases,
    )


def _peer(
    name: str,
    module: str,
    package: str,
    cross_entropy_of: Callable[[Case], peers.CrossEntropy],
    overwrites: bool = False,
) -> Provider:
    prepare = from_loss(peers.with_mse(cross_entropy_of))
    return Provider(name, prepare, needs.peer(module, package), overwrites=overwrites)


_fused = partial(Provider, prepare=from_loss(fused_loss), ours=True)
_AUTOTUNE = partial(compiled_loss, mode="max-autotune-no-cudagraphs")

_LOSSES = (
    Provider("eager", from_loss(eager_loss)),
    Provider("eager-float32", from_loss(widened_loss), fits=_half),
    Provider("compile", from_loss(compiled_loss), needs.compiler),
    Provider("compile-autotune", from_loss(_AUTOTUNE), needs.autotuning),
    _fused("fused-auto", context=partial(backend, "auto")),
    _fused(
        f"fused-auto{ON_REQUEST}",
        prepare=_in_place,
        context=partial(backend, "auto"),
        phases=(Phase.TRAINING,),
        fits=_is_large,
    ),
    _fused("fused-triton", available=needs.kernels, context=partial(backend, "triton")),
)
_PEERS = (
    _peer("liger", "liger_kernel", "liger-kernel", peers.liger, overwrites=True),
    _peer("quack", "quack", "quack-kernels", peers.quack),
    _peer("flag-gems", "flag_gems", "flag-gems", peers.flag_gems),
)
_FLOORS = (
    Provider(
        "copy", _copy, computes=False, phases=tuple(p for p in LOSS_PHASES if p is not Phase.STEP)
    ),
    Provider("model-alone", _model_alone, computes=False, phases=(Phase.STEP,)),
)
_GRAPHS = tuple(_replayed(p) for p in _LOSSES if p.name in ("eager", "compile", "fused-triton"))

PROVIDERS: dict[str, Provider] = {
    provider.name: provider for provider in (*_LOSSES, *_GRAPHS, *_PEERS, *_FLOORS)
}
