"""What `OnnxDualHead` adds to a bare session of onnxruntime, on an MLP of two layers.

Run it with `python -m fused_loss.bench.overhead`. The programs alternate: in each round every one
of them gives one sample, the mean of `CALLS` calls; a ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fused_loss.export import OnnxDualHead, export_onnx
from fused_loss.export.errors import require
from fused_loss.modules import DualHead

CALLS = 50
BARE = "bare session"


def programs(path: Path, batch: int) -> dict[str, Callable[[], object]]:
    """By name: a bare session, `OnnxDualHead`, and its bound arrays, each with a row to read."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bare = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ours = OnnxDualHead(path)
    ours.warm_up(batch)
    bound, names = ours.bind(batch), list(ours.output_names)
    feed = bound.inputs[0]
    x = np.random.default_rng(0).standard_normal(feed.shape, np.float32)

    def with_binding() -> object:
        feed[:] = x
        return bound()

    return {
        BARE: lambda: bare.run(names, {"input": x}),
        "OnnxDualHead": lambda: ours(x),
        "OnnxDualHead.bind": with_binding,
    }


def samples(
    chosen: dict[str, Callable[[], object]], rounds: int, calls: int = CALLS
) -> dict[str, list[float]]:
    """Seconds a call of each program, one sample a round, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in chosen}
    for program in chosen.values():
        for _ in range(calls):
            program()
    for _ in range(rounds):
        for name, program in chosen.items():
            begin = time.perf_counter()
            for _ in range(calls):
                program()
            taken[name].append((time.perf_counter() - begin) / calls)
    return taken


def table(taken: dict[str, list[float]]) -> str:
    """A line a program: the median in microseconds, and over the bare session in each round."""
    lines = []
    for name, own in taken.items():
        ratio = statistics.median(a / b for a, b in zip(own, taken[BARE], strict=True))
        lines.append(f"{name:18} {1e6 * statistics.median(own):8.1f} us  {ratio:.3f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Export the MLP, time it, print the table."""
    parser = argparse.ArgumentParser("fused_loss.bench.overhead", description=__doc__)
    for name, default in (("width", 256), ("batch", 1), ("rounds", 400)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    layers = [layer for _ in range(2) for layer in (nn.Linear(args.width, args.width), nn.ReLU())]
    model = DualHead(nn.Sequential(*layers), nn.Linear(args.width, 1), nn.Linear(args.width, 10))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlp.onnx")
        export_onnx(model, torch.randn(8, args.width), path)
        print(table(samples(programs(path, args.batch), args.rounds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
