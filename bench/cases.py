"""What a case is: its shapes and options, the bytes it must move, and its random inputs.

Imports nothing but torch, so that correctness tests may draw on the same cases.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the default of `F.cross_entropy`, so no provider passes it
SCALE = 65536.0  # the initial scale of `torch.amp.GradScaler`


class Phase(str, Enum):
    """What one call does."""

    FORWARD = "forward"  # the loss, under no-grad
    TRAINING = "forward+backward"  # the loss and both gradients, for a grad_output of 1
    SCALED = "scaled forward+backward"  # the same for a GradScaler's grad_output, `SCALE`
    STEP = "training step"  # of a small model: forward, loss, backward, optimizer
    ONE_THREAD = "inference on 1 thread"  # a model's outputs, without gradients
    TWO_THREADS = "inference on 2 threads"

    @property
    def grad_output(self) -> float:
        """What the backward pass begins with."""
        return SCALE if self is Phase.SCALED else 1.0

    @property
    def gradients(self) -> bool:
        """Whether a backward pass follows."""
        return self in (Phase.TRAINING, Phase.SCALED, Phase.STEP)

    @property
    def threads(self) -> int | None:
        """The CPU threads that the phase is about; None: as many as PyTorch takes."""
        return {Phase.ONE_THREAD: 1, Phase.TWO_THREADS: 2}.get(self)


LOSS_PHASES = (Phase.FORWARD, Phase.TRAINING, Phase.SCALED, Phase.STEP)
MODEL_PHASES = (Phase.ONE_THREAD, Phase.TWO_THREADS)


class Inputs(NamedTuple):
    """The tensors of one call. Both outputs are leaves that require grad."""

    regression_output: Tensor  # (N, *features)
    classification_output: Tensor  # (N, C, *positions)
    regression_targets: Tensor  # (N, *features)
    classification_targets: Tensor  # (N, *positions) int64, or the logits' shape: probabilities
    class_weight: Tensor | None  # (C,) in the logits' dtype


@dataclass(frozen=True)
class Case:
    """One loss to compute.

    Attributes:
        name: Unique among all cases.
        family: Who has tensors of this kind.
        N: Samples.
        C: Classes.
        features: The regression output is (N, *features).
        positions: The logits are (N, C, *positions).
        logits_dtype: A float dtype by name, such as "bfloat16".
        regression_dtype: The same for the other head.
        soft_targets: Whether the classification targets are probabilities.
        ignored: The share of positions whose class index is `IGNORE_INDEX`.
        label_smoothing: As in `F.cross_entropy`.
        class_weight: Whether there are class weights.
        alpha: The weight of the regression loss.
    """

    name: str
    family: str
    N: int
    C: int
    features: tuple[int, ...] = (1,)
    positions: tuple[int, ...] = ()
    logits_dtype: str = "float32"
    regression_dtype: str = "float32"
    soft_targets: bool = False
    ignored: float = 0.0
    label_smoothing: float = 0.0
    class_weight: bool = False
    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a case that no loss could take.

        Raises:
            ValueError: Empty sizes, an unknown dtype, or ignored positions among soft targets.
        """
        if min(self.N, self.C, *self.features, *self.positions) < 1:
            raise ValueError(f"every size of case {self.name!r} must be at least 1")
        if self.soft_targets and self.ignored:
            raise ValueError(f"case {self.name!r}: soft targets have no ignored positions")
        for name in (self.logits_dtype, self.regression_dtype):
            if name not in DTYPES:
                raise ValueError(
                    f"case {self.name!r}: dtype must be one of {sorted(DTYPES)}, got {name!r}"
                )

    @property
    def regression_shape(self) -> tuple[int, ...]:
        """(N, *features)."""
        return (self.N, *self.features)

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """(N, C, *positions)."""
        return (self.N, self.C, *self.positions)

    @property
    def targets_shape(self) -> tuple[int, ...]:
        """(N, *positions): one class index each."""
        return (self.N, *self.positions)

    @property
    def logits_bytes(self) -> int:
        """What the memory of a call is measured in."""
        return math.prod(self.logits_shape) * DTYPES[self.logits_dtype].itemsize

    @property
    def ignored_positions(self) -> int:
        """How many positions carry `IGNORE_INDEX`: the same number for every seed."""
        return round(self.ignored * math.prod(self.targets_shape))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those of a loss; `Phase.STEP` has linear heads, so one position a sample, and a batch."""
        trained = not self.positions and self.N <= MOST_TRAINED
        return tuple(phase for phase in LOSS_PHASES if trained or phase is not Phase.STEP)

    # With b bytes a logit, d bytes an element of the regression, P positions of which L are
    # labelled, and M elements of the regression, no implementation moves less than
    #
    #     forward            L·C·b  logits read          (an ignored row need not be read)
    #                      + 8·P    class indices read   (or P·C·b probabilities)
    #                      + 2·M·d  r and y read
    #                      + C·b    class weights read, where there are any
    #     with backward    + P·C·b  gradient written     (ignored rows are written too: zeros)
    #                      + M·d    gradient written
    #
    # The loss itself is one scalar and is left out.
    def bytes_moved(self, phase: Phase) -> int:
        """The fewest bytes that the loss can move in this phase, read and written together."""
        b = DTYPES[self.logits_dtype].itemsize
        elements = math.prod(self.regression_shape) * DTYPES[self.regression_dtype].itemsize
        positions = math.prod(self.targets_shape)
        moved = (positions - self.ignored_positions) * self.C * b + 2 * elements
        moved += positions * self.C * b if self.soft_targets else 8 * positions
        moved += self.C * b if self.class_weight else 0
        if phase is not Phase.FORWARD:
            moved += positions * self.C * b + elements
        return moved

    # A labelled logit costs max, subtract, exp and add (4) in the forward pass and a product, or
    # with soft targets a product and a difference, in the backward pass; soft or smoothed targets
    # cost a product and a sum more. An element of the regression costs a difference, a square and
    # a sum (3), and a product for its gradient.
    def flops(self, phase: Phase) -> int:
        """The floating-point operations of the loss in this phase, exp counted as one."""
        spread = self.soft_targets or self.label_smoothing > 0
        logits = (math.prod(self.targets_shape) - self.ignored_positions) * self.C
        elements = math.prod(self.regression_shape)
        counted = logits * (6 if spread else 4) + 3 * elements
        if phase is not Phase.FORWARD:
            counted += logits * (2 if spread else 1) + elements
        return counted

    def make(self, device: torch.device | str = "cpu", seed: int = 0) -> Inputs:
        """Random inputs: the same for the same device and seed, and nowhere constant."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(shape: tuple[int, ...], dtype: str) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[dtype])

        targets = self._targets(generator, normal)
        weight = None
        if self.class_weight:
            weight = torch.rand(self.C, generator=generator, device=device).add_(0.5)
            weight = weight.to(DTYPES[self.logits_dtype])
        return Inputs(
            normal(self.regression_shape, self.regression_dtype).requires_grad_(),
            normal(self.logits_shape, self.logits_dtype).requires_grad_(),
            normal(self.regression_shape, self.regression_dtype),
            targets,
            weight,
        )

    def _targets(self, generator: torch.Generator, normal: Any) -> Tensor:
        if self.soft_targets:
            return torch.softmax(normal(self.logits_shape, self.logits_dtype), 1)
        device = generator.device
        targets = torch.randint(self.C, self.targets_shape, generator=generator, device=device)
        order = torch.randperm(targets.numel(), generator=generator, device=device)
        targets.view(-1)[order[: self.ignored_positions]] = IGNORE_INDEX
        return targets

    def input_sets(self, device: torch.device) -> int:
        """How many sets of inputs to rotate among, so that a GPU's L2 holds none of the next one.

        One on a CPU, where a loss reads what the model has just written. At most `MOST_SETS`: the
        smallest cases stay in the cache, and their time is that of their launches.
        """
        if device.type != "cuda":
            return 1
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        return min(MOST_SETS, 1 + math.ceil(3 * cache / self.bytes_moved(Phase.FORWARD)))

    def as_json(self) -> dict[str, Any]:
        """Every field, and the bytes and operations of each phase."""
        return asdict(self) | {
            "bytes_moved": {phase.value: self.bytes_moved(phase) for phase in self.phases},
            "flops": {phase.value: self.flops(phase) for phase in self.phases},
        }


DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}
MOST_SETS = 64
MOST_TRAINED = 1 << 14  # samples of a training step
