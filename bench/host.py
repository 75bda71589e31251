"""What the host spends on a call around its kernels: every launch is replaced by nothing.

Run it with `python -m fused_loss.bench.host`; it needs Triton and no GPU. A figure is the CPU time
of this thread, which other work on the machine hardly changes: the median over `--rounds` of the
mean of `--calls`. What Triton and the driver spend on a launch is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from fused_loss import combined_loss, kernels
from fused_loss.kernels import dispatch
from fused_loss.spec import LossSpec, LossTensors, Needs

SHAPES = {"tutorial": ((100, 1), (100, 2)), "tabular": ((4096, 1), (4096, 10))}


def _nothing(device: object) -> None:
    pass


def _no_launch(call: object, arguments: object) -> None:
    pass


@contextmanager
def no_launches() -> Iterator[None]:
    """Let CPU tensors reach the launcher, whose launches do nothing."""
    from fused_loss.kernels import triton_launch

    with (
        mock.patch.object(triton_launch, "launch", new=_no_launch),
        mock.patch.object(dispatch, "_demand_triton", new=_nothing),
        kernels.backend("triton"),
    ):
        yield


def parts(r_shape: Sequence[int], z_shape: Sequence[int]) -> dict[str, Callable[[], object]]:
    """What is timed, by name: a training step of `combined_loss`, and pieces of it."""
    r, z = torch.zeros(r_shape, requires_grad=True), torch.zeros(z_shape, requires_grad=True)
    y, t = torch.zeros(r_shape), torch.zeros(z_shape[0], dtype=torch.int64)
    plain_r, plain_z = r.detach(), z.detach()
    spec, tensors = LossSpec(), LossTensors(plain_r, plain_z, y, t)
    one = torch.ones(())

    def step() -> None:
        combined_loss(r, z, y, t).backward()
        r.grad = z.grad = None

    def forward(needs: Needs) -> Callable[[], object]:
        return lambda: dispatch.forward("triton", spec, tensors, needs)

    stored: list[Tensor | None] = [torch.zeros(r_shape), torch.zeros(z_shape)]
    return {
        "step": step,
        "loss without gradient": lambda: combined_loss(plain_r, plain_z, y, t),
        "backend, forward": forward(Needs(True, True, False)),
        "backend, backward": lambda: dispatch.scale("triton", stored, one, True),
    }


def microseconds(part: Callable[[], object], rounds: int, calls: int) -> float:
    """CPU time of this thread for one call of `part`."""
    taken = []
    for _ in range(rounds + 1):  # the first warms up
        begin = time.thread_time()
        for _ in range(calls):
            part()
        taken.append((time.thread_time() - begin) / calls)
    return 1e6 * statistics.median(taken[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a part."""
    parser = argparse.ArgumentParser("fused_loss.bench.host", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tutorial", help="(tutorial)")
    for name, default in (("rounds", 20), ("calls", 500)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    args = parser.parse_args(argv)
    with no_launches():
        for name, part in parts(*SHAPES[args.shape]).items():
            print(f"{name:24} {microseconds(part, args.rounds, args.calls):7.2f} us")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
