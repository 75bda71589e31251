"""How near the loss and its gradients come to float64, option by option, beside PyTorch's own.

Each option runs on each backend in each dtype over the same random inputs. The truth is PyTorch's
composition in float64 of the inputs as they were rounded, and the yardstick the same composition in
float32 (what autocast makes of losses), its gradients rounded to the dtype of the outputs. An error
is the largest of an output, and its unit the last place of the output's dtype at the largest value
of that output. This package's may be the larger of the yardstick's and one unit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from fused_loss import backend, combined_loss, task_losses
from fused_loss.bench.accuracy_options import OPTIONS, Option, Problem
from fused_loss.bench.accuracy_table import markdown, within
from fused_loss.bench.composed import composed
from fused_loss.bench.environment import environment
from fused_loss.bench.written import add_out, write_table

ABOUT = "the error of every option, backend and dtype against float64, beside PyTorch's own"
BACKENDS = ("auto", "reference", "eager", "triton")
DTYPES = {  # of the regression output and of the logits
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32 and bfloat16": (torch.float32, torch.bfloat16),
}
SEEDS = 16
FILE, REPORT = "accuracy.json", "accuracy.md"

Outputs = dict[str, Tensor]
Ulps = dict[str, float]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench accuracy`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=_positive, default=SEEDS, help="inputs of each row (default: %(default)s)"
    )
    add_out(parser, f"{FILE} and {REPORT}")


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write it where that is asked for.

    Returns:
        0; 1 where this package is less accurate than it may be; 2 for a device that is not there.
    """
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        print(f"fused-loss bench accuracy: --device {args.device}: {first_line}", file=sys.stderr)
        return 2
    environs = "TRITON_INTERPRET=1 " if interpreted(device) else ""
    results = {
        "command": f"{environs}fused-loss bench accuracy --device {device} --seeds {args.seeds}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(device),
        "absent": absent(device),
        "interpreted": interpreted(device),
    }
    measured = list(rows(device, args.seeds))
    text = markdown(results | {"rows": measured})
    print(text)
    write_table(args.out, (FILE, REPORT), results, measured, text)
    return int(not all(within(row) for row in measured))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def rows(
    device: torch.device, seeds: int = SEEDS, options: Sequence[Option] = OPTIONS
) -> Iterator[dict[str, Any]]:
    """A row an option, dtype and backend: the largest error of each output over the seeds, in ulps.

    Args:
        device: Where.
        seeds: So many inputs a row.
        options: Some of `OPTIONS`.
    """
    backends = [name for name in BACKENDS if name not in absent(device)]
    for option in options:
        for label, dtypes in DTYPES.items():
            eager: Ulps = {}
            ours: dict[str, Ulps] = {name: {} for name in backends}
            for seed in range(seeds):
                problem = option.problem(dtypes, seed, device)
                truth = of_pytorch(problem, torch.float64)
                _raise(eager, errors(of_pytorch(problem, torch.float32), truth))
                for name in backends:
                    _raise(ours[name], errors(of_package(problem, name), truth))
            for name in backends:
                yield {
                    "option": option.name,
                    "dtype": label,
                    "backend": name,
                    "ulps": ours[name],
                    "eager_ulps": eager,
                }


def absent(device: torch.device) -> dict[str, str]:
    """The backends that cannot run here, and why."""
    if device.type == "cuda" or interpreted(device):
        return {}
    return {"triton": "no GPU, and not in Triton's interpreter: set TRITON_INTERPRET=1"}


def interpreted(device: torch.device) -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def of_pytorch(problem: Problem, dtype: torch.dtype) -> Outputs:
    """The loss, its components and the gradients, by PyTorch's operators in this dtype.

    The gradients in float64 are not rounded.
    """
    wide = dtype == torch.float64
    leaves, keywords = _leaves(problem, wide)
    tasks = keywords.pop("task_losses", False)
    loss, mse, ce = composed(leaves["r"], leaves["z"], problem.y, problem.t, dtype, **keywords)
    return _outputs(problem, leaves, mse + ce if tasks else loss, (mse, ce))


def of_package(problem: Problem, name: str) -> Outputs:
    """The same by a backend of this package."""
    leaves, keywords = _leaves(problem, False)
    tasks = keywords.pop("task_losses", False)
    z = leaves["z"]
    if keywords.get("inplace_gradient"):
        keywords["inplace_gradient"] = name != "reference"
        z = z * 1
    with backend(name):
        if tasks:
            mse, ce = task_losses(leaves["r"], z, problem.y, problem.t, **keywords)
            assert isinstance(mse, Tensor)
            assert isinstance(ce, Tensor)
            return _outputs(problem, leaves, mse + ce, (mse, ce))
        loss, components = combined_loss(
            leaves["r"], z, problem.y, problem.t, return_components=True, **keywords
        )
    return _outputs(problem, leaves, loss, components)


def _leaves(problem: Problem, wide: bool) -> tuple[Outputs, dict[str, Any]]:
    """What takes a gradient, by name, and the keywords with the weights among it."""
    keywords = dict(problem.keywords)
    given = {"r": problem.r, "z": problem.z}
    given |= {name: keywords[name] for name in ("alpha", "loss_weights") if name in keywords}
    leaves = {
        name: (tensor.double() if wide else tensor.clone()).requires_grad_()
        for name, tensor in given.items()
    }
    keywords.update({name: leaves[name] for name in leaves if name in keywords})
    return leaves, keywords


def _outputs(
    problem: Problem, leaves: Outputs, loss: Tensor, components: Sequence[Tensor]
) -> Outputs:
    gradients = torch.autograd.grad(loss, list(leaves.values()), problem.grad_output.to(loss.dtype))
    named = {f"{name} gradient": g for name, g in zip(leaves, gradients, strict=True)}
    parts = zip(("regression loss", "classification loss"), components, strict=True)
    return {"loss": loss.detach(), **{name: part.detach() for name, part in parts}, **named}


def errors(found: Outputs, truth: Outputs) -> Ulps:
    """The largest error of each output, in units of its last place at its largest value.

    Infinite where one is a number and the other is not, or all should be 0.
    """
    ulps = {}
    for name, exact in truth.items():
        value = found[name].double()
        if not torch.equal(value.isfinite(), exact.isfinite()):
            ulps[name] = float("inf")
            continue
        off = (value - exact)[exact.isfinite()].abs()
        largest = exact[exact.isfinite()].abs()
        unit = torch.finfo(found[name].dtype).eps * (largest.max() if largest.numel() else 0)
        worst = float(off.max()) if off.numel() else 0.0
        ulps[name] = worst / float(unit) if worst and unit else worst and float("inf")
    return ulps


def _raise(most: Ulps, found: Ulps) -> None:
    """Keep the larger of each."""
    for name, value in found.items():
        most[name] = max(value, most.get(name, 0.0))
