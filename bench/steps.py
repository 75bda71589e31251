"""What the clock sees: a loss made into one call of a phase.

A step takes a case's inputs and returns (loss,), or (loss, d loss/dr, d loss/dz) where a phase has
gradients, or what it computed last where it is no loss at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from fused_loss.bench.cases import DTYPES, Case, Inputs, Phase
from fused_loss.bench.programs import Step
from fused_loss.modules import DualHead

Loss = Callable[[Inputs], Tensor]

WIDTH = 64  # of the small model
WARM_CALLS = 3  # before a CUDA graph is captured


class _PassedOn(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def passed_on(leaf: Tensor) -> Tensor:
    """A leaf's memory as a layer's output: no leaf, and no view of one."""
    passed: Tensor = _PassedOn.apply(leaf)
    return passed


def step_of(loss: Loss, case: Case, phase: Phase, device: torch.device) -> Step:
    """A loss as one call of a phase."""
    if phase is Phase.FORWARD:
        return lambda inputs: (loss(inputs),)
    if phase is Phase.STEP:
        return TrainingStep(case, device, loss)
    return _gradients(loss, torch.tensor(phase.grad_output, device=device))


def _gradients(loss: Loss, grad_output: Tensor) -> Step:
    """The loss and its gradient in both outputs, as they flow on into a model."""
    plain = grad_output.item() == 1

    def step(inputs: Inputs) -> tuple[Tensor, ...]:
        value = loss(inputs)
        outputs = inputs.regression_output, inputs.classification_output
        return value, *torch.autograd.grad(value, outputs, None if plain else grad_output)

    return step


class TrainingStep:
    """A step of SGD on a small float32 model whose outputs have the case's shapes and dtypes.

    Args:
        case: One position a sample.
        device: Where.
        loss: The loss; None: fixed gradients in its place, which leaves the model's own time.
    """

    def __init__(self, case: Case, device: torch.device, loss: Loss | None) -> None:
        generator = torch.Generator().manual_seed(0)
        trunk = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        heads = (nn.Linear(WIDTH, n) for n in (math.prod(case.features), case.C))
        self.model = DualHead(trunk, *heads)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(0, WIDTH**-0.5, generator=generator)
        self.model.to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.x = torch.randn(case.N, WIDTH, generator=generator).to(device)
        self.case, self.loss = case, loss

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Forward, loss, backward, optimizer; (loss,) or, without a loss, (a model output,)."""
        self.optimizer.zero_grad(set_to_none=True)
        r, z = self.model(self.x)
        r = r.reshape(self.case.regression_shape).to(DTYPES[self.case.regression_dtype])
        z = z.to(DTYPES[self.case.logits_dtype])
        if self.loss is None:
            torch.autograd.backward((r, z), (r.detach(), z.detach()))
            value = r
        else:
            value = self.loss(inputs._replace(regression_output=r, classification_output=z))
            value.backward()
        self.optimizer.step()
        return (value.detach(),)


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


class OnCopies:
    """A step that writes over its logits, on copies of its own: one for each set of inputs.

    A copy holds the logits in the first call alone, and then their gradient. So small values make
    an ordinary softmax, whose time is the same; those of a scaled gradient would not.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.copies: dict[int, Tensor] = {}

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The step, after a copy where these inputs are new."""
        logits = inputs.classification_output
        key = logits.data_ptr()
        if key not in self.copies:
            self.copies[key] = logits.detach().clone().requires_grad_()
        return self.step(inputs._replace(classification_output=self.copies[key]))


class Replayed:
    """A step captured as one CUDA graph for each set of inputs, and replayed.

    Replay takes the host out of the time: what is left is the GPU's. The outputs are the graph's
    own buffers, overwritten by the next replay on the same inputs.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Replay, after a capture where these inputs are new."""
        key = inputs.classification_output.data_ptr()
        if key not in self.captured:
            self.captured[key] = self._capture(inputs)
        graph, outputs = self.captured[key]
        graph.replay()
        return outputs

    def _capture(self, inputs: Inputs) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_CALLS):
                self.step(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.step(inputs)
        return graph, outputs
