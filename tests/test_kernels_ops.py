"""The Triton kernels within `torch.compile` and `torch.export`: one operator each way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cases import TRITON_PLACES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck

import fused_loss
from fused_loss import CombinedLoss, combined_loss, task_losses
from fused_loss.kernels import ops, triton_launch
from fused_loss.options import arrange

pytestmark = pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
CASES: dict[str, dict[str, Any]] = {
    "mean": {},
    "sum of probabilities": {"reduction": "sum", "soft": True, "label_smoothing": 0.1},
    "none": {"reduction": "none"},
    "float16": {"dtype": torch.float16},
    "everything": {
        "class_weight": True, "class_mask": True, "regression_weight": True,
        "classification_weight": True, "nan_targets": "ignore", "empty": "zero",
        "classification_normalizer": True, "label_smoothing": 0.1,
    },
}  # fmt: skip


def inputs(
    device: str, n: int = 4, soft: bool = False, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[list[Tensor], dict[str, Any]]:
    """r, z, y, t and an alpha, and the options with tensors for what is True."""
    random = torch.Generator().manual_seed(n)
    r, y = torch.randn(2, n, 2, generator=random)
    z = torch.randn(n, 5, generator=random)
    t = torch.arange(n) % 5
    tensors: dict[str, Tensor] = {
        "class_weight": torch.rand(5, generator=random),
        "class_mask": (torch.rand(n, 5, generator=random) < 0.6).index_put(
            (torch.arange(n), t), torch.tensor(True)
        ),
        "regression_weight": torch.rand(n, 1, generator=random),
        "classification_weight": torch.rand(n, generator=random),
        "classification_normalizer": torch.tensor(3),
    }
    if options.get("nan_targets"):
        y[0, 0] = torch.nan
    given = {name: tensors[name] if value is True else value for name, value in options.items()}
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}
    leaves = [r.to(dtype), z.to(dtype), y, z.flip(1).softmax(1) if soft else t, torch.tensor(0.25)]
    leaves = [leaf.to(device) for leaf in leaves]
    for place in (0, 1, 4):
        leaves[place].requires_grad_()
    return leaves, given


def in_a_graph(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled whole, with the graph's operators run as they are: what is tested is ours."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of r, z and alpha, for a grad_output that is not 1."""
    upstream = torch.full_like(loss, 1.5)
    return list(torch.autograd.grad(loss, [leaves[0], leaves[1], leaves[4]], upstream))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels launched so far. (A dispatch mode, as `launches` has it, stops the compiler.)"""
    kernels: list[str] = []
    original = triton_launch.launch

    def recorded(call: Any, arguments: dict[str, Any]) -> None:
        kernels.append(call.kernel.fn.__name__)
        original(call, arguments)

    monkeypatch.setattr(triton_launch, "launch", recorded)
    return kernels


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_call_is_one_launch_each_way(name, launched, backend, device):
    leaves, options = inputs(device, **CASES[name])
    with fused_loss.backend(backend):
        plain = combined_loss(*leaves, **options)
        expected = [plain, *gradients(plain, leaves)]
        compiled = in_a_graph(combined_loss)
        compiled(*leaves, **options)  # compiles
        kernel = "per_sample_kernel" if options.get("reduction") == "none" else "reduce_kernel"
        launched.clear()
        loss = compiled(*leaves, **options)
        assert launched == [kernel]
        found = gradients(loss, leaves)
        assert launched == [kernel] * 2
    for one, other in zip([loss, *found], expected, strict=True):
        assert one.dtype == other.dtype
        bound = 4 * torch.finfo(one.dtype).eps * other.abs().max()
        assert (one - other).abs().max() <= bound


def test_neither_another_alpha_nor_another_batch_compiles_again(backend, device):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(combined_loss, fullgraph=True, dynamic=True, backend=counter)
    with fused_loss.backend(backend):
        for n in (4, 5, 7):
            leaves, _ = inputs(device, n)
            for alpha in (0.25, 0.75):
                leaves[4] = torch.tensor(alpha, device=device, requires_grad=True)
                assert torch.equal(compiled(*leaves), combined_loss(*leaves))
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"return_components": True}])
def test_gradients_in_a_graph_of_dynamic_shapes(options, backend, device):
    """To both outputs and to a pair of weights."""
    torch._dynamo.reset()

    def step(r: Tensor, z: Tensor, y: Tensor, t: Tensor, pair: Tensor) -> Tensor:
        found = combined_loss(r, z, y, t, loss_weights=pair, **options)
        return found[0] if isinstance(found, tuple) else found

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with fused_loss.backend(backend):
        for n in (4, 5, 7):
            leaves, _ = inputs(device, n)
            leaves[4] = torch.tensor([0.25, 1.5], device=device, requires_grad=True)
            (loss, *found), (plain, *wanted) = (
                (loss, *gradients(loss, leaves)) for loss in (f(*leaves) for f in (compiled, step))
            )
            for one, other in zip((loss, *found), (plain, *wanted), strict=True):
                bound = 4 * torch.finfo(one.dtype).eps * other.abs().max()
                assert (one - other).abs().max() <= bound


def test_compiled_task_losses_and_their_components(backend, device):
    """Each changed in place, beside what it was."""
    leaves, _ = inputs(device)

    def doubled(r: Tensor, z: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        (mse, ce), parts = task_losses(r, z, y, t, return_components=True)
        return mse.mul(2), ce.mul_(2), mse, *parts

    with fused_loss.backend(backend):
        for one, other in zip(in_a_graph(doubled)(*leaves[:4]), doubled(*leaves[:4]), strict=True):
            assert one.requires_grad == other.requires_grad
            assert (one - other).abs() <= 4 * torch.finfo(one.dtype).eps * other.abs()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_compiled_loss_of_a_frozen_head_wants_no_gradient(frozen, backend, device):
    leaves, _ = inputs(device)
    leaves[frozen] = leaves[frozen].detach()
    with fused_loss.backend(backend):
        losses = in_a_graph(task_losses)(*leaves[:4])
        expected = task_losses(*leaves[:4])
    assert [loss.requires_grad for loss in losses] == [frozen == 1, frozen == 0]
    trained = 1 - frozen
    one, other = (
        torch.autograd.grad(pair[trained], leaves[trained])[0] for pair in (losses, expected)
    )
    assert (one - other).abs().max() <= 4 * torch.finfo(one.dtype).eps * other.abs().max()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_task_losses_share_a_launch(reduction, launched, backend, device):
    """And take one a head on their way back; with weights that are a graph's own as well."""
    leaves, _ = inputs(device)

    def weighted(r: Tensor, z: Tensor, y: Tensor, t: Tensor, alpha: Tensor) -> Tensor:
        mse, ce = task_losses(r, z, y, t, reduction=reduction)
        return alpha * mse + (2 - alpha) * ce.square()

    with fused_loss.backend(backend):
        plain = weighted(*leaves)
        expected = [plain, *gradients(plain, leaves)]
        compiled = in_a_graph(weighted)
        compiled(*leaves)  # compiles
        launched.clear()
        loss = compiled(*leaves)
        assert len(launched) == 1
        found = gradients(loss, leaves)
        assert len(launched) == 3
    for one, other in zip([loss, *found], expected, strict=True):
        bound = 4 * torch.finfo(one.dtype).eps * other.abs().max()
        assert (one - other).abs().max() <= bound


@pytest.mark.parametrize("name", CASES)
def test_the_operators_are_registered_as_they_are(name, backend, device):
    """Schema, fake tensors, autograd and dynamic shapes, as PyTorch checks them."""
    leaves, options = inputs(device, **CASES[name])
    spec, tensors = arrange(*leaves, **options)
    arguments = (*tensors, *ops._scalars(spec))
    opcheck(torch.ops.fused_loss.loss.default, arguments)
    upstream = torch.ones(len(leaves[1]) if spec.per_sample else (), device=device)
    constants = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    for needs in ((True, True), (True, False), (False, True)):
        opcheck(torch.ops.fused_loss.gradients.default, (upstream, *needs, *constants))


class Model(nn.Module):
    """Two heads, and the loss within."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(3, 7)
        self.criterion = CombinedLoss(0.3, label_smoothing=0.1, nan_targets="ignore")

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        heads = self.heads(x)
        return self.criterion(heads[:, :2], heads[:, 2:], y, t)


@pytest.mark.parametrize("asked", ["auto", "triton"])
def test_a_module_with_the_loss_exports(asked, backend, device):
    torch.manual_seed(0)
    model = Model().to(device)
    batch = torch.export.Dim("batch", min=2)
    with fused_loss.backend(asked):
        shapes = ({0: batch}, {0: batch}, {0: batch})
        program = torch.export.export(model, example(4, device), dynamic_shapes=shapes)
        for n in (4, 9):
            arguments = example(n, device)
            expected = model(*arguments)
            bound = 4 * torch.finfo(expected.dtype).eps * expected.abs()
            assert (program.module()(*arguments) - expected).abs() <= bound


def example(n: int, device: str) -> tuple[Tensor, ...]:
    """x, y with a missing target, t."""
    random = torch.Generator().manual_seed(n)
    x, y = (torch.randn(n, k, generator=random) for k in (3, 2))
    y[1, 1] = torch.nan
    return x.to(device), y.to(device), (torch.arange(n) % 5).to(device)


def test_an_illegal_index_is_nan_within_a_graph(backend, device):
    leaves, _ = inputs(device)
    leaves[3] = leaves[3].index_fill(0, torch.tensor([2], device=device), 77)
    with fused_loss.backend(backend):
        loss = in_a_graph(combined_loss)(*leaves)
    _, z_grad, _ = gradients(loss, leaves)
    assert loss.isnan()
    assert z_grad.isnan().any(1).tolist() == [False, False, True, False]


def test_a_gradient_in_place_is_refused_within_a_graph(backend, device):
    leaves, _ = inputs(device)
    compiled = in_a_graph(lambda r, z, y, t: combined_loss(r, z * 1, y, t, inplace_gradient=True))
    with (
        fused_loss.backend(backend),
        pytest.raises(Exception, match="inplace_gradient=True does not go with a compiled graph"),
    ):
        compiled(*leaves[:4])
