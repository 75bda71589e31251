"""What the host spends on a call around its kernels: every launch is replaced by nothing.

Run it with `python -m fused_loss.bench.host`; it needs Triton and no GPU. A figure is the CPU time
of this thread, which other work on the machine hardly changes: the median over `--rounds` of the
mean of `--calls`. What Triton and the driver spend on a launch is not in it, and the tensors are
the CPU's, whose allocations cost other times than a GPU's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fused_loss import combined_loss, kernels
from fused_loss.bench.environment import environment
from fused_loss.bench.wording import date, machine, table, versions
from fused_loss.bench.written import add_out, write_table
from fused_loss.kernels import dispatch
from fused_loss.spec import LossSpec, LossTensors, Needs

SHAPES = {"tutorial": ((100, 1), (100, 2)), "tabular": ((4096, 1), (4096, 10))}
FILE, REPORT = "host.json", "host.md"


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


def markdown(results: dict[str, Any]) -> str:
    """The figures: a line a part, a column a shape."""
    rows = results["rows"]
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = {
        part: [f"{row['microseconds']:.1f}" for row in rows if row["part"] == part]
        for part in dict.fromkeys(row["part"] for row in rows)
    }
    head = ["part", *[f"{shape}, µs" for shape in shapes]]
    parts = [
        "# What the host spends around its kernels: launches replaced by nothing",
        f"```\n{results['command']}\n```",
        f"{machine(results)}, {date(results)}, {versions(results)}, "
        f"commit {results['environment']['commit']}.",
        "CPU time of one thread, on CPU tensors: no kernel ran, no driver was asked, and **nothing "
        'of this is measured on a GPU**. A "step" is a call of `combined_loss` and its backward.',
        table(head, [[part, *values] for part, values in lines.items()], "l" + "r" * len(shapes)),
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a part, and write the figures where that is asked for."""
    parser = argparse.ArgumentParser("fused_loss.bench.host", description=__doc__)
    for name, default in (("rounds", 20), ("calls", 500)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    add_out(parser, f"{FILE} and {REPORT}")
    args = parser.parse_args(argv)
    results = {
        "command": f"python -m fused_loss.bench.host --rounds {args.rounds} --calls {args.calls}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(torch.device("cpu")),
    }
    with no_launches():
        rows = [
            {
                "shape": shape,
                "part": name,
                "microseconds": microseconds(part, args.rounds, args.calls),
            }
            for shape, sizes in SHAPES.items()
            for name, part in parts(*sizes).items()
        ]
    text = markdown(results | {"rows": rows})
    print(text)
    write_table(args.out, (FILE, REPORT), results, rows, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
