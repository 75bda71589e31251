"""Calls whose launches end at a launcher that only notes what it is given; JSON on stdout.

Triton binds, specialises and compiles for sm_90 as it does on a GPU; no GPU is needed, since
nothing is loaded or started. Each launch is made as the package makes it, and once more by asking
Triton for everything: both must start the same machine code with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as active

import fused_loss
from fused_loss.kernels import dispatch, triton_direct


class Launcher:
    """In place of Triton's own: where a launch ends."""

    given: tuple[Any, ...] = ()

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *given: Any) -> None:
        Launcher.given = given


class Driver:
    """A GPU that takes any code and runs none; it is its own `utils`."""

    launcher_cls = Launcher

    @property
    def utils(self) -> Driver:
        return self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 20}

    def load_binary(self, *code: Any) -> tuple[Any, ...]:
        return object(), object(), 0, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: Any) -> None:
        pass


def same(one: Any, other: Any) -> bool:
    """Whether a launcher would do the same with both."""
    if one is other or isinstance(one, torch.Tensor):
        return one is other
    if type(one) is not type(other):
        return False
    return getattr(one, "data", one) == getattr(other, "data", other)  # a LazyDict has `data`


class Watch:
    """Counts the launches, those that Triton was asked for, and those that were not as it says."""

    def __init__(self) -> None:
        self.launches = self.asked = 0
        self.wrong: list[str] = []
        self._start, self._ask = triton_direct.start, triton_direct.ask

    def ask(self, call: Any, arguments: Any) -> Any:
        self.asked += 1
        return self._ask(call, arguments)

    def start(self, call: Any, arguments: Any) -> None:
        self.launches += 1
        self._start(call, arguments)
        given = Launcher.given
        self._ask(call, arguments)
        name = call.kernel.fn.__name__
        pairs = zip(given, Launcher.given, strict=True)
        self.wrong += [f"{name}: {one} for {other}" for one, other in pairs if not same(one, other)]

    def run(self, call: Callable[[], None]) -> dict[str, Any]:
        """What one call did."""
        self.launches, self.asked, self.wrong = 0, 0, []
        patched = {"start": self.start, "ask": self.ask}
        with (
            mock.patch.multiple(triton_direct, **patched),
            mock.patch.object(dispatch, "_demand_triton"),
            fused_loss.backend("triton"),
        ):
            call()
        return {"launches": self.launches, "asked": self.asked, "wrong": self.wrong}


def step(
    n: int = 100,
    c: int = 16,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Callable[[], None]:
    """A training step; the logits begin `offset` elements after an aligned address."""

    def call() -> None:
        z = torch.zeros(n * c + offset, dtype=dtype)[offset:].view(n, c).requires_grad_()
        r, y, t = torch.zeros(n, 1, requires_grad=True), torch.zeros(n, 1), torch.zeros(n).long()
        loss = fused_loss.combined_loss(r, z, y, t, **options)
        loss.backward(torch.ones_like(loss))

    return call


def main() -> None:
    """Name, and what each call did, in the order of the calls."""
    active.set_active(Driver())
    watch = Watch()
    steps = {
        "first": step(),
        "again": step(),
        "another alpha": step(alpha=0.25),
        "another offset": step(offset=1),
        "that offset again": step(offset=5),
        "aligned again": step(offset=4),
        "another dtype": step(dtype=torch.bfloat16),
        "another length": step(n=101),
        "many": step(n=20000, c=2),
        "many again": step(n=20000, c=2, alpha=0.25),
        "a normalizer": step(n=101, classification_normalizer=3),
        "another normalizer": step(n=101, classification_normalizer=4.5),
        "none": step(reduction="none", label_smoothing=0.1),
        "none again": step(reduction="none", label_smoothing=0.1),
    }
    found = {name: watch.run(call) for name, call in steps.items()}
    with mock.patch.object(triton_direct, "aligned", return_value=0):  # as if none were looked at
        for name, offset in (("blind", 0), ("blind to an offset", 1)):
            found[name] = watch.run(step(offset=offset))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
