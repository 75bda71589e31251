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
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_loss import backend, combined_loss
from fused_loss.bench.cases import Case, Inputs, Phase

Step = Callable[[Inputs], tuple[Tensor, ...]]  # -> (loss,) or (loss, d loss/dr, d loss/dz)
Loss = Callable[[Inputs], Tensor]


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
        factory: `(case, phase, device) -> step`.
        available: Why it cannot run on a device, or None where it can.
        context: Entered around its steps, outside the clock.
        computes: Whether a step returns the loss and its gradients, to be held to the reference.
        ours: Whether it is this package's: one that is wrong fails the run.
    """

    name: str
    factory: Callable[[Case, Phase, torch.device], Step]
    available: Callable[[torch.device], str | None] = _anywhere
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    computes: bool = True
    ours: bool = False

    def program(self, case: Case, phase: Phase, device: torch.device) -> Program:
        """The provider made ready for a case and a phase; its first step may compile."""
        return Program(self.factory(case, phase, device), partial(self._context, phase))

    @contextmanager
    def _context(self, phase: Phase) -> Iterator[None]:
        with torch.set_grad_enabled(phase is Phase.TRAINING), self.context():
            yield


def training(loss: Loss) -> Step:
    """The loss and its gradient in both outputs, as they flow on into a model."""

    def step(inputs: Inputs) -> tuple[Tensor, ...]:
        value = loss(inputs)
        outputs = inputs.regression_output, inputs.classification_output
        return value, *torch.autograd.grad(value, outputs)

    return step


def factory_of(loss_of: Callable[[Case], Loss]) -> Callable[[Case, Phase, torch.device], Step]:
    """A factory from what makes a loss for a case."""

    def factory(case: Case, phase: Phase, device: torch.device) -> Step:
        loss = loss_of(case)
        return training(loss) if phase is Phase.TRAINING else lambda inputs: (loss(inputs),)

    return factory


def eager_loss(case: Case) -> Loss:
    """The obvious composition of PyTorch's own two losses."""
    alpha, smoothing = case.alpha, case.label_smoothing

    def loss(inputs: Inputs) -> Tensor:
        r, z, y, t, weight = inputs
        mse = F.mse_loss(r, y)
        return alpha * mse + (1 - alpha) * F.cross_entropy(z, t, weight, label_smoothing=smoothing)

    return loss


def compiled_loss(case: Case) -> Loss:
    """The same under `torch.compile`, specialised to the case's shapes."""
    return torch.compile(eager_loss(case), fullgraph=True, dynamic=False)


def fused_loss(case: Case) -> Loss:
    """This package's `combined_loss`."""
    alpha, smoothing = case.alpha, case.label_smoothing

    def loss(inputs: Inputs) -> Tensor:
        r, z, y, t, weight = inputs
        return combined_loss(r, z, y, t, alpha, class_weight=weight, label_smoothing=smoothing)

    return loss


def copy_step(case: Case, phase: Phase, device: torch.device) -> Step:
    """A copy that moves as many bytes as the phase must: half of them read, half written.

    The buffers exist beforehand, and rotate as the inputs of the others do.
    """
    half = case.bytes_moved(phase) // 2
    size = (case.input_sets(device), half)
    sources = torch.randint(256, size, dtype=torch.uint8, device=device)
    slots = cycle(zip(sources, torch.empty_like(sources), strict=True))

    def step(_: Inputs) -> tuple[Tensor, ...]:
        source, target = next(slots)
        return (target.copy_(source),)

    return step


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


_fused = partial(Provider, factory=factory_of(fused_loss), ours=True)

PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider("eager", factory_of(eager_loss)),
        Provider("compile", factory_of(compiled_loss), _needs_compiler),
        _fused("fused-eager", context=partial(backend, "eager")),
        _fused("fused-triton", available=_needs_gpu, context=partial(backend, "triton")),
        Provider("copy", copy_step, computes=False),
    )
}


def select(names: str | None) -> list[Provider]:
    """Providers by comma-separated names; "fused" stands for every `fused-…`. None: all of them.

    Raises:
        ValueError: A name that no provider has.
    """
    if names is None:
        return list(PROVIDERS.values())
    chosen = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        found = [p for p in PROVIDERS.values() if p.name == name or p.name.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"--providers has no {name!r}; there are {', '.join(PROVIDERS)}")
        chosen += found
    if not chosen:
        raise ValueError(f"--providers names none of {', '.join(PROVIDERS)}")
    return list(dict.fromkeys(chosen))
