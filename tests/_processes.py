"""One of the processes of the data-parallel test: `python _processes.py RANK FOLDER`.

Each process has micro-batches of its own, in which labels are missing unevenly; the gradient of the
whole batch is what one process finds for all of them together.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fused_loss
from fused_loss import Denominators, DualHead, combined_loss, loss_denominators

SHARES = ((3, 2), (4, 1))  # the micro-batches of each process
BACKENDS = ("eager", "reference")
OPTIONS: dict[str, Any] = {
    "class_weight": torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64),
    "nan_targets": "ignore",
}


class Batch(NamedTuple):
    """All rows, or some, in float64."""

    x: Tensor  # (N, 4)
    y: Tensor  # (N, 2)
    t: Tensor  # (N,)


def model() -> DualHead:
    """The same weights whenever it is called."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        return DualHead(trunk, nn.Linear(8, 2), nn.Linear(8, 3)).double()


def whole() -> Batch:
    """The second process has no regression target, and its last micro-batch no label at all."""
    random = torch.Generator().manual_seed(1)
    n = sum(map(sum, SHARES))
    x = torch.randn(n, 4, generator=random, dtype=torch.float64)
    y = torch.randn(n, 2, generator=random, dtype=torch.float64)
    t = torch.randint(3, (n,), generator=random)
    y[0, 1] = y[sum(SHARES[0]) :] = torch.nan
    t[1] = t[2] = t[5] = t[-1] = -100
    return Batch(x, y, t)


def share(rank: int) -> list[Batch]:
    """The micro-batches of a process."""
    of_rank = [part.split([sum(sizes) for sizes in SHARES])[rank] for part in whole()]
    return [Batch(*parts) for parts in zip(*(t.split(SHARES[rank]) for t in of_rank), strict=True)]


def gradients(module: nn.Module) -> Tensor:
    """All of them, in one row."""
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def train(rank: int, right: bool) -> dict[str, Tensor]:
    """One accumulated step under DistributedDataParallel: this process's loss, and the gradient."""
    module = DistributedDataParallel(model())
    batches = share(rank)
    parts = (loss_denominators(y, t, **OPTIONS) for _, y, t in batches)
    total = Denominators.total(parts).across()
    options: dict[str, Any] = {**total.normalizers()} if right else {"empty": "zero"}
    loss = torch.zeros((), dtype=torch.float64)
    for k, (x, y, t) in enumerate(batches):
        with nullcontext() if k == len(batches) - 1 else module.no_sync():
            part = combined_loss(*module(x), y, t, **OPTIONS, **options)
            (part if right else part / len(batches)).backward()
        loss += part.detach()
    return {"loss": loss, "gradients": gradients(module)}


def alone(rank: int) -> dict[str, Tensor | str]:
    """Denominators within a group of the first process only."""
    group = dist.new_group([0])
    own = Denominators(torch.tensor(2.0), torch.tensor(6.0))
    try:
        found = own.across(group)
    except RuntimeError as error:
        return {"error": str(error)}
    return {"found": torch.stack((found.regression, found.classification))}


def main() -> None:
    """Write what this process finds to FOLDER/RANK.pt."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=len(SHARES)
    )
    found: dict[str, Any] = {"alone": alone(rank)}
    for backend in BACKENDS:
        with fused_loss.backend(backend):
            found[backend] = train(rank, right=True)
    found["mean of means"] = train(rank, right=False)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
