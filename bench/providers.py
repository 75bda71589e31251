"""What is compared: every way of computing a case's loss, and a copy of the same bytes.

A provider becomes a `Program` for a case and a phase. Its step is what the clock sees; everything
that a training loop would set up once (a grad mode, a backend) is in its context, outside.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss import backend, combined_loss
from fused_loss.bench import peers
from fused_loss.bench.cases import DTYPES, Case, Inputs, Phase
from fused_loss.bench.steps import Loss, Replayed, Step, TrainingStep, copy_step, step_of

Prepared = Callable[[Phase], Step]


@dataclass(frozen=True)
class Program:
    """A provider on a case in a phase, ready to run."""

    step: Step
    context: Callable[[], AbstractContextManager[None]]

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """One step within its context."""
        with self.context():
            return self.step(inputs)


def _anywhere(device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Provider:
    """One way to do the work.

    Attributes:
        name: As on the command line; `fused-…` are this package's own.
        prepare: `(case, device) -> (phase -> step)`, once a case: what it compiles, it compiles
            for all phases.
        available: Why it cannot run on a device, or None where it can.
        context: Entered around its steps, outside the clock.
        phases: Those that it takes part in.
        fits: Whether it says anything new of a case.
        computes: Whether a step returns the loss and its gradients, to be held to the reference.
        ours: Whether it is this package's: one that is wrong fails the run.
        overwrites: Whether it writes into the inputs: its check then has inputs of its own.
    """

    name: str
    prepare: Callable[[Case, torch.device], Prepared]
    available: Callable[[torch.device], str | None] = _anywhere
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    phases: tuple[Phase, ...] = tuple(Phase)
    fits: Callable[[Case], bool] = lambda case: True
    computes: bool = True
    ours: bool = False
    overwrites: bool = False

    def programs(self, case: Case, device: torch.device) -> Callable[[Phase], Program]:
        """The provider made ready for a case; the first step of a phase may compile."""
        steps = self.prepare(case, device)
        return lambda phase: Program(steps(phase), partial(self._context, phase))

    def program(self, case: Case, phase: Phase, device: torch.device) -> Program:
        """The provider made ready for a case and one phase."""
        return self.programs(case, device)(phase)

    @contextmanager
    def _context(self, phase: Phase) -> Iterator[None]:
        with torch.set_grad_enabled(phase is not Phase.FORWARD), self.context():
            yield


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


def _needs_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return (
            None
            if importlib.util.find_spec("triton")
            else "torch.compile needs Triton: pip install triton"
        )
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler.split()[0]):
        return None
    return f"torch.compile needs a C++ compiler and finds no {compiler}: install it, or set CXX"


def _needs_gpu(device: torch.device) -> str | None:
    if device.type != "cuda":
        return (
            "the Triton kernels are timed on a GPU only: their interpreter proves values, not speed"
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 runs the Triton kernels in Python: unset it"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton: pip install 'fused-loss[triton]'"
    return None


def _needs_autotuning(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "there is nothing to autotune on a CPU"
    return _needs_compiler(device)


def _peer(
    name: str,
    module: str,
    package: str,
    cross_entropy_of: Callable[[Case], peers.CrossEntropy],
    overwrites: bool = False,
) -> Provider:
    prepare = from_loss(peers.with_mse(cross_entropy_of))
    return Provider(name, prepare, peers.needs(module, package), overwrites=overwrites)


_fused = partial(Provider, prepare=from_loss(fused_loss), ours=True)
_AUTOTUNE = partial(compiled_loss, mode="max-autotune-no-cudagraphs")

_LOSSES = (
    Provider("eager", from_loss(eager_loss)),
    Provider("eager-float32", from_loss(widened_loss), fits=_half),
    Provider("compile", from_loss(compiled_loss), _needs_compiler),
    Provider("compile-autotune", from_loss(_AUTOTUNE), _needs_autotuning),
    _fused("fused-eager", context=partial(backend, "eager")),
    _fused("fused-triton", available=_needs_gpu, context=partial(backend, "triton")),
)
_PEERS = (
    _peer("liger", "liger_kernel", "liger-kernel", peers.liger, overwrites=True),
    _peer("quack", "quack", "quack-kernels", peers.quack),
    _peer("flag-gems", "flag_gems", "flag-gems", peers.flag_gems),
)
_FLOORS = (
    Provider("copy", _copy, computes=False, phases=tuple(p for p in Phase if p is not Phase.STEP)),
    Provider("model-alone", _model_alone, computes=False, phases=(Phase.STEP,)),
)
_GRAPHS = tuple(_replayed(p) for p in _LOSSES if p.name in ("eager", "compile", "fused-triton"))

PROVIDERS: dict[str, Provider] = {
    provider.name: provider for provider in (*_LOSSES, *_GRAPHS, *_PEERS, *_FLOORS)
}


def select(names: str | None) -> list[Provider]:
    """Providers by comma-separated names; a name that is none, such as "fused", stands for every
    `fused-…`. None: all of them.

    Raises:
        ValueError: A name that no provider has.
    """
    if names is None:
        return list(PROVIDERS.values())
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        found = [p for p in PROVIDERS.values() if p.name.startswith(f"{name}-")]
        if name in PROVIDERS:
            found = [PROVIDERS[name]]
        if not found:
            raise ValueError(f"--providers has no {name!r}; there are {', '.join(PROVIDERS)}")
        chosen += found
    if not chosen:
        raise ValueError(f"--providers names none of {', '.join(PROVIDERS)}")
    return list(dict.fromkeys(chosen))
