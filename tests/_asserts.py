"""How far a result may be from the oracle, and what may happen beside a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from _cases import Problem
from _numpy_oracle import Expected, Options, combined
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fused_loss
from fused_loss import combined_loss
from fused_loss.bench.composed import composed as composition

Result = dict[str, Tensor]


# --- three ways to the same numbers ---------------------------------------------------------------


def leaves(problem: Problem) -> tuple[Result, dict[str, Any]]:
    """The tensors that take a gradient, by name, and the keywords that hold the weights among them.

    A copy keeps its strides, stride 0 apart.
    """
    keywords = dict(problem.keywords)
    wanted = {"r": problem.r, "z": problem.z}
    for name in ("alpha", "loss_weights"):
        if isinstance(keywords.get(name), Tensor):
            wanted[name] = keywords[name]
    taken = {name: tensor.detach().requires_grad_() for name, tensor in wanted.items()}
    keywords.update({name: taken[name] for name in taken if name in keywords})
    return taken, keywords


def fused(
    problem: Problem, backend: str, watch: Callable[[], AbstractContextManager] = nullcontext
) -> Result:
    """Loss, components and gradients of `combined_loss`; each pass within a `watch` of its own.

    Under `inplace_gradient` it is given a copy of the logits, with their strides, to write over.
    """
    taken, keywords = leaves(problem)
    z = taken["z"]
    if keywords.get("inplace_gradient"):
        keywords["inplace_gradient"] = backend != "reference"
        z = torch.empty_strided(z.shape, z.stride(), dtype=z.dtype, device=z.device).copy_(z)
    with fused_loss.backend(backend), watch():
        loss, components = combined_loss(
            taken["r"], z, problem.y, problem.t, return_components=True, **keywords
        )
    with watch():
        gradients = torch.autograd.grad(loss, list(taken.values()), problem.grad_output)
    named = dict(zip(taken, gradients, strict=True))
    return {"loss": loss.detach(), **components._asdict(), **named}


def composed(problem: Problem) -> Result:
    """The same from PyTorch's operators in the dtype of the loss, as a user would compose it."""
    taken, keywords = leaves(problem)
    loss, mse, ce = composition(
        taken["r"], taken["z"], problem.y, problem.t, problem.grad_output.dtype, **keywords
    )
    gradients = torch.autograd.grad(loss, list(taken.values()), problem.grad_output)
    named = dict(zip(taken, gradients, strict=True))
    parts = {"loss": loss, "regression": mse, "classification": ce}
    return {**{name: part.detach() for name, part in parts.items()}, **named}


def expected(problem: Problem) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same from the NumPy loops, and the sums of the terms' absolute values."""
    tensors = problem.r, problem.z, problem.y, problem.t, problem.grad_output
    r, z, y, t, upstream = map(numpy, tensors)
    given: dict[str, Any] = {
        name: numpy(value) if isinstance(value, Tensor) else value
        for name, value in problem.keywords.items()
        if name in Options._fields
    }
    if "class_mask" in given:
        mask = given["class_mask"].astype(bool)
        mask = mask.reshape(-1, *[1] * (z.ndim - 2)) if mask.ndim == 1 and z.ndim > 1 else mask
        given["class_mask"] = np.broadcast_to(mask, z.shape)
    for name, shape in (
        ("regression_weight", r.shape),
        ("classification_weight", z.shape[:1] + z.shape[2:] if z.ndim > 1 else ()),
    ):
        if name in given:
            given[name] = np.broadcast_to(given[name], shape)
    values, terms = combined(r, z, y, t, problem.weights, Options(**given), upstream)
    return _named(values, problem.keywords, -1), _named(terms, problem.keywords, 1)


def _named(found: Expected, keywords: dict[str, Any], sign: int) -> dict[str, np.ndarray]:
    named = found._asdict()
    mse, ce = named.pop("weights")
    if isinstance(keywords.get("alpha"), Tensor):
        named["alpha"] = np.asarray(mse + sign * ce)
    if isinstance(keywords.get("loss_weights"), Tensor):
        named["loss_weights"] = np.array([mse, ce])
    return named


def numpy(tensor: Tensor) -> np.ndarray:
    """Indices as int64, anything else as float64: no value changes."""
    wide = torch.float64 if tensor.is_floating_point() else torch.int64
    return tensor.detach().cpu().to(wide).numpy()


# --- how far apart they may be --------------------------------------------------------------------


def error(actual: Tensor, oracle: np.ndarray) -> float:
    """The largest difference, over the elements where the oracle is finite."""
    finite = np.isfinite(oracle)
    difference = np.abs(numpy(actual).astype(np.longdouble)[finite] - oracle[finite])
    return float(difference.max()) if difference.size else 0.0


def ulp(terms: np.ndarray, dtype: torch.dtype) -> float:
    """One unit in the last place of `dtype` at the largest of the terms that were added up."""
    largest = float(terms[np.isfinite(terms)].max(initial=0.0))
    kind = torch.finfo(dtype)
    return kind.eps * max(largest, kind.smallest_normal)


def assert_same_specials(name: str, actual: Tensor, oracle: np.ndarray) -> None:
    """NaN and infinities are where the oracle has them, and nowhere else."""
    found = numpy(actual)
    special = ~(np.isfinite(oracle) & np.isfinite(found))
    np.testing.assert_array_equal(found[special], oracle[special].astype(float), name)


def assert_as_reference(problem: Problem, actual: Result) -> None:
    """For what the NumPy loops do not define: NaN and inf where the reference has them.

    The rest as near as `assert_matches` has it, to the reference in float64; for float64 itself
    that is rounded as often. The gradients of the weights are sums of the components, in the dtype
    of the loss.
    """
    narrow = fused(problem, "reference")
    truth = fused(_widened(problem), "reference")
    components = [abs(numpy(truth[name])) for name in ("regression", "classification")]
    summed = np.asarray(sum(abs(numpy(problem.grad_output)) * part for part in components))
    for name, value in actual.items():
        oracle = numpy(truth[name])
        assert value.shape == oracle.shape
        assert_same_specials(name, value, numpy(narrow[name]))
        terms, dtype = abs(oracle) + 1, value.dtype
        if name in ("alpha", "loss_weights"):
            terms, dtype = summed[np.isfinite(summed)].sum() + terms, problem.grad_output.dtype
        ulps = 4 if dtype == torch.float64 else 2
        bound = error(narrow[name], oracle) + ulps * ulp(terms, dtype)
        assert error(value, oracle) <= bound, name


def _widened(problem: Problem) -> Problem:
    floats = {
        name: tensor.double()
        for name, tensor in problem._asdict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    return problem._replace(**floats)


def assert_matches(problem: Problem, actual: Result, yardstick: Result) -> None:
    """Loss, components and every gradient are right: shape, dtype, special values, and the rest.

    Of each tensor the largest error against the oracle may exceed the yardstick's own (PyTorch's
    operators in the dtype of the loss) by two ulps of that dtype at the tensor's largest term: four
    roundings. A gradient of a narrower dtype may add half an ulp of its own each time it is stored:
    once, or twice where a stored one is scaled by `grad_output` later.
    """
    oracle, terms = expected(problem)
    assert actual.keys() == oracle.keys()
    taken, keywords = leaves(problem)
    wide = problem.grad_output.dtype
    scaled = keywords.get("reduction") != "none" and bool((problem.grad_output != 1).any())
    for name, value in actual.items():
        dtype = taken[name].dtype if name in taken else wide
        assert value.dtype == dtype, f"{name}: {value.dtype}, not {dtype}"
        assert value.shape == oracle[name].shape, f"{name}: {tuple(value.shape)}"
        assert_same_specials(name, value, oracle[name])
        own = error(yardstick[name], oracle[name])
        if np.isnan(own):  # F.cross_entropy's gradient, where the targets' weights are all 0
            own = 0.0
        bound = own + 2 * ulp(terms[name], wide)
        if dtype != wide:
            bound += (1.0 if scaled else 0.5) * ulp(terms[name], dtype)
        off = error(value, oracle[name])
        assert off <= bound, f"{name}: off by {off:.3g}, allowed {bound:.3g}"


# --- what happens beside a launch -----------------------------------------------------------------

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "zeros"}
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute",
    "select", "slice", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """The kernels that were launched, and the operators that were dispatched beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []
        self.arguments: list[dict[str, Any]] = []  # one a launch
        self.programs: list[int] = []  # one a launch
        self.operators: list[str] = []
        self.inside = False  # the interpreter computes with operators of its own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.operators.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def assert_alone(self) -> None:
        """Something was launched, and nothing but allocations and views dispatched beside it."""
        assert self.kernels
        assert set(self.operators) <= ALLOCATIONS | VIEWS, self.operators


@contextmanager
def launches() -> Iterator[Launches]:
    """Record what the Triton backend does within the block."""
    from fused_loss.kernels import triton_launch

    original = triton_launch.launch
    log = Launches()

    def recorded(call: Any, arguments: dict[str, Any]) -> None:
        log.kernels.append(call.kernel.fn.__name__)
        log.programs.append(call.programs)
        log.arguments.append(arguments)
        log.inside = True
        try:
            original(call, arguments)
        finally:
            log.inside = False

    triton_launch.launch = recorded
    try:
        with log:
            yield log
    finally:
        triton_launch.launch = original


def launched(problem: Problem) -> tuple[Result, list[str], list[str]]:
    """What Triton computes, and the kernels that it launched forward and backward: nothing else.

    The gradient of a weight that is a tensor is a handful of 0-d operators in the backward pass.
    """
    logs: list[Launches] = []

    @contextmanager
    def watch() -> Iterator[None]:
        with launches() as log:
            logs.append(log)
            yield

    result = fused(problem, "triton", watch)
    forward, backward = logs
    forward.assert_alone()
    if not {"alpha", "loss_weights"} & result.keys():
        backward.assert_alone()
    return result, forward.kernels, backward.kernels


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let memory that is not initialised be NaN throughout."""
    places = [(torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty_strided")]
    originals = [getattr(owner, name) for owner, name in places]

    def poisoned(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            tensor = original(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocate

    for (owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, poisoned(original))
    try:
        yield
    finally:
        for (owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)
