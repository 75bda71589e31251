"""Inputs, and the oracle composed from `torch.nn.functional`, for tests of the public functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT = ("eager", "triton", "reference")
ALL = ("auto", *EXPLICIT)
NEIGHBOURS = 8

Function = Callable[..., Tensor]


def device_of(backend: str) -> torch.device:
    """Where a backend runs: Triton in its interpreter on CPU tensors, or on a GPU."""
    from fused_loss.kernels import triton_launch

    on_gpu = backend == "triton" and not triton_launch.interpreted()
    return torch.device("cuda" if on_gpu else "cpu")


def batch(
    n: int = 4,
    c: int = 3,
    features: Sequence[int] = (2,),
    positions: Sequence[int] = (),
    soft: bool = False,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """float32 (r, z, y, t): r and y (N, *features), z (N, C, *positions)."""
    generator = torch.Generator().manual_seed(0)
    r, y = torch.randn(2, n, *features, generator=generator)
    z = torch.randn(n, c, *positions, generator=generator)
    t = torch.randint(c, (n, *positions), generator=generator)
    if soft:
        t = torch.randn(z.shape, generator=generator).softmax(1)
    return [x.to(device) for x in (r, z, y, t)]


def composed(
    r: Tensor, z: Tensor, y: Tensor, t: Tensor, alpha: float | Tensor = 0.5, **options: Any
) -> Tensor:
    """`alpha * F.mse_loss + (1 - alpha) * F.cross_entropy` in `promote(float32, r, z)`."""
    wide = torch.promote_types(torch.promote_types(r.dtype, z.dtype), torch.float32)
    mse = F.mse_loss(r.to(wide), y.to(wide), reduction=options.get("reduction", "mean"))
    return alpha * mse + (1 - alpha) * F.cross_entropy(z.to(wide), t, **options)


def results(function: Function, inputs: Sequence[Any], leaves: Sequence[int] = ()) -> list[Tensor]:
    """The value of `function(*inputs)`, and the gradients of the inputs at `leaves`."""
    given = list(inputs)
    for i in leaves:
        given[i] = given[i].detach().clone().requires_grad_()
    value = function(*given)
    wanted = [given[i] for i in leaves]
    return [value.detach(), *(torch.autograd.grad(value.sum(), wanted) if wanted else ())]


def assert_agrees(
    function: Function, oracle: Function, inputs: Sequence[Any], leaves: Sequence[int] = (0, 1)
) -> None:
    """Value and gradients are as near to the oracle in float64 as it is itself, give an ulp."""
    actual = results(function, inputs, leaves)
    truth = results(oracle, _double(inputs), leaves)
    bounds = errors(oracle, inputs, leaves)
    if actual[0].dtype == torch.float64:  # the truth errs as much: twice float32's
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        bounds = [2 * bound * ratio for bound in bounds]
    for one, other, bound in zip(actual, truth, bounds, strict=True):
        assert_near(one, other, bound)


def errors(oracle: Function, inputs: Sequence[Any], leaves: Sequence[int] = ()) -> list[float]:
    """The oracle's own error in float32 or half, relative to its largest value, for each result.

    The largest over neighbours of the inputs, since a single one may be rounded by chance to
    nothing.
    """
    worst: list[float] = []
    for k in range(NEIGHBOURS):
        near = [_single(x) * (1 + k / NEIGHBOURS) if _is_float(x) else x for x in inputs]
        own, truth = (results(oracle, x, leaves) for x in (near, _double(near)))
        found = [_relative(*pair) for pair in zip(own, truth, strict=True)]
        worst = [max(pair) for pair in zip(found, worst or found, strict=True)]
    return worst


def assert_near(actual: Tensor, truth: Tensor, bound: float) -> None:
    """Relative to the largest value: within `bound` and an ulp of the truth; NaN and inf equal."""
    assert actual.shape == truth.shape
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert special(actual).tolist() == special(truth).tolist()
    off, allowed = _relative(actual, truth), bound + torch.finfo(actual.dtype).eps
    assert off <= allowed, f"off by {off:.3e}, allowed {allowed:.3e}"


def _relative(actual: Tensor, truth: Tensor) -> float:
    finite = truth.isfinite()
    exact = truth[finite]
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    off = float((actual[finite].double() - exact).abs().max()) if exact.numel() else 0.0
    return off / largest if largest else off


def _double(inputs: Sequence[Any]) -> list[Any]:
    return [x.double() if _is_float(x) else x for x in inputs]


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.float64 else x


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
