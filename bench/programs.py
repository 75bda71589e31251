"""A provider, one way to do the work, and the program that it becomes for a case and a phase.

A program's step is what the clock sees; everything that its user would set up once (a grad mode, a
backend) is in its context, outside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fused_loss.bench import needs
from fused_loss.bench.cases import Phase

Step = Callable[[Any], tuple[Any, ...]]  # the inputs that its case makes -> its outputs
Prepared = Callable[[Phase], Step]


@dataclass(frozen=True)
class Program:
    """A provider on a case in a phase, ready to run."""

    step: Step
    context: Callable[[], AbstractContextManager[None]]

    def __call__(self, inputs: Any) -> tuple[Any, ...]:
        """One step within its context."""
        with self.context():
            return self.step(inputs)


@dataclass(frozen=True)
class Provider:
    """One way to do the work.

    Attributes:
        name: As on the command line; those in `stored.OURS` are this package's own.
        prepare: `(case, device) -> (phase -> step)`, once a case: what it compiles, it compiles
            for all phases.
        available: Why it cannot run on a device, or None where it can.
        context: Entered around its steps, outside the clock.
        phases: Those that it takes part in.
        fits: Whether it says anything new of a case.
        computes: Whether a step returns what is held to the reference.
        ours: Whether it is this package's: one that is wrong fails the run.
        overwrites: Whether it writes into the inputs: its check then has inputs of its own.
    """

    name: str
    prepare: Callable[[Any, torch.device], Prepared]
    available: Callable[[torch.device], str | None] = needs.nothing
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    phases: tuple[Phase, ...] = tuple(Phase)
    fits: Callable[[Any], bool] = lambda case: True
    computes: bool = True
    ours: bool = False
    overwrites: bool = False

    def programs(self, case: Any, device: torch.device) -> Callable[[Phase], Program]:
        """The provider made ready for a case; the first step of a phase may compile."""
        steps = self.prepare(case, device)
        return lambda phase: Program(steps(phase), partial(self._context, phase))

    def program(self, case: Any, phase: Phase, device: torch.device) -> Program:
        """The provider made ready for a case and one phase."""
        return self.programs(case, device)(phase)

    @contextmanager
    def _context(self, phase: Phase) -> Iterator[None]:
        with torch.set_grad_enabled(phase.gradients), self.context():
            yield


def select(names: str | None, known: Collection[str]) -> list[str]:
    """The known providers that comma-separated names mean, each once; a name that is none, such as
    "fused", stands for every `fused-…`. None: all of them.

    Raises:
        ValueError: A name that no provider has.
    """
    if names is None:
        return list(known)
    chosen: list[str] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        found = [name] if name in known else [k for k in known if k.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"--providers has no {name!r}; there are {', '.join(known)}")
        chosen += found
    if not chosen:
        raise ValueError(f"--providers names none of {', '.join(known)}")
    return list(dict.fromkeys(chosen))
