"""What only a GPU can show: size, streams, capture, and that nothing waits for the device."""

import pytest
import torch
from _asserts import Result, fused, leaves
from _cases import BF16, F16, F32, REDUCTIONS, Case, Problem
from _gpu import captured, device_kernels

import fused_loss
from fused_loss import combined_loss, cross_entropy, mse_loss

pytestmark = pytest.mark.gpu

BACKENDS = ["eager", "triton"]


def large(n, c, dtype, targets="hard", **keywords):
    """A problem made on the device."""
    random = torch.Generator("cuda").manual_seed(0)
    r, y = torch.randn(2, n, 3, device="cuda", generator=random)
    z = (3 * torch.randn(n, c, device="cuda", generator=random)).to(dtype)
    if targets == "soft":
        t = torch.rand(n, c, device="cuda", generator=random).to(dtype)
    else:
        t = torch.randint(0, c, (n,), device="cuda", generator=random)
        t[::7] = -100
    shape = (n,) if keywords.get("reduction") == "none" else ()
    upstream = torch.rand(shape, device="cuda", generator=random)
    return Problem(r, z, y, t, keywords, (0.5, 0.5), upstream)


def assert_near_float64(problem: Problem, actual: Result) -> None:
    """No further from the reference in float64 than the reference is, and two ulps."""
    wide = problem._replace(
        r=problem.r.double(),
        z=problem.z.double(),
        y=problem.y.double(),
        t=problem.t.double() if problem.t.is_floating_point() else problem.t,
        grad_output=problem.grad_output.double(),
    )
    truth, own = fused(wide, "reference"), fused(problem, "reference")
    for name, value in actual.items():
        largest = truth[name].abs().max()
        bound = (own[name].double() - truth[name]).abs().max()
        bound = bound + 2 * torch.finfo(value.dtype).eps * largest
        assert (value.double() - truth[name]).abs().max() <= bound, name


SIZES = [
    (16384, 1000, BF16), (16384, 1000, F32), (4, 262144, BF16), (4, 262144, F32),
    (2048, 32000, BF16), (512, 32000, F16), (100_000, 10, F32), (3, 16385, F32),
]  # fmt: skip


@pytest.mark.parametrize("targets", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_large(backend, size, reduction, targets):
    problem = large(*size, targets, reduction=reduction, label_smoothing=0.1)
    actual = fused(problem, backend)
    assert_near_float64(problem, actual)
    again = fused(problem, backend)
    assert all(torch.equal(actual[name], again[name]) for name in actual)


@pytest.mark.parametrize("shape", [(2_200_000, 1000), (33, 1 << 26), (45_000, 50257)], ids=str)
def test_more_than_2_to_the_31_logits(shape):
    """Rows of zeros, whose every gradient is known; the last two are looked at in float64."""
    n, c = shape
    z = torch.zeros(shape, dtype=BF16, device="cuda")
    z[-2:] = torch.randn(2, c, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    t = torch.full((n,), c - 1, device="cuda")
    zero = torch.zeros(1, device="cuda")
    z.requires_grad_()
    with fused_loss.backend("triton"):
        loss = combined_loss(zero, z, zero, t, loss_weights=(1.0, 1.0), reduction="sum")
    (found,) = torch.autograd.grad(loss, z)
    wide = z[-2:].detach().double().requires_grad_()
    own = torch.nn.functional.cross_entropy(wide, t[-2:], reduction="sum")
    (truth,) = torch.autograd.grad(own, wide)
    eps = torch.finfo(BF16).eps
    assert ((found[-2:] - truth).abs() <= eps * truth.abs()).all()
    for rows in found[:-2].split(max(1, (1 << 28) // c)):
        assert ((rows[:, :-1] - 1 / c).abs() <= eps / c).all()
        assert ((rows[:, -1] - (1 / c - 1)).abs() <= eps).all()
    even = (n - 2) * torch.tensor(float(c)).double().log()
    assert (loss.double().cpu() - own.cpu() - even).abs() <= 4 * torch.finfo(F32).eps * even


def test_more_than_2_to_the_31_predictions():
    n = (1 << 31) + 5
    r = torch.zeros(n, dtype=BF16, device="cuda")
    r[-3:] = torch.tensor([1.0, 2.0, 3.0])
    r.requires_grad_()
    with fused_loss.backend("triton"):
        loss = mse_loss(r, torch.zeros(1, dtype=BF16, device="cuda").expand(n), reduction="sum")
    loss.backward()
    assert loss.item() == 14.0
    assert r.grad[-3:].tolist() == [2.0, 4.0, 6.0]
    assert not r.grad[:-3].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_waits_for_the_device(backend, targets, reduction):
    case = Case(reduction, targets=targets, weighted=True, smoothing=0.25, weighting="alpha-tensor")
    problem = case.problem("cuda")
    expected = fused(problem, backend)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = fused(problem, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_graph_computes_again(backend, reduction):
    """Replayed after its inputs changed, it gives what a fresh call gives; twice."""
    problem = large(4096, 100, F32, reduction=reduction)
    taken, keywords = leaves(problem)
    static = taken["r"], taken["z"]

    def step():
        with fused_loss.backend(backend):
            loss = combined_loss(*static, problem.y, problem.t, **keywords)
        return loss, *torch.autograd.grad(loss, static, problem.grad_output)

    graph, outputs = captured(step)
    for scale in (0.5, 2.0):
        with torch.no_grad():
            for leaf in static:
                leaf.mul_(scale)
            problem.t.copy_(problem.t.flip(0))
        graph.replay()
        for value, fresh in zip(outputs, step(), strict=True):
            assert torch.equal(value, fresh)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_streams_at_once(backend, reduction):
    """Each launch counts its programs on a ticket of its own."""
    problem = large(8192, 1000, BF16, reduction=reduction)
    alone = fused(problem, backend)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(fused(problem, backend))
    torch.cuda.synchronize()
    for result in found:
        assert all(torch.equal(result[name], alone[name]) for name in alone)


@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_device_sees_one_kernel(reduction, targets):
    """Forward and gradients are one kernel; so is a backward pass."""
    problem = Case(reduction, targets=targets).problem("cuda")
    fused(problem, "triton")
    taken, keywords = leaves(problem)
    with fused_loss.backend("triton"):
        kernels, loss = device_kernels(
            lambda: combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)
        )
    assert kernels == 1
    kernels, _ = device_kernels(
        lambda: torch.autograd.grad(loss, (taken["r"], taken["z"]), problem.grad_output)
    )
    assert kernels == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_illegal_index_is_not_read(backend):
    """A GPU that read there would fault, now or at the next synchronisation."""
    z = torch.randn(8, 100, device="cuda", requires_grad=True)
    t = torch.full((8,), 1 << 60, device="cuda")
    t[0] = 5
    with fused_loss.backend(backend):
        losses = cross_entropy(z, t, reduction="none")
    losses.sum().backward()
    torch.cuda.synchronize()
    assert losses.isnan().tolist() == [False] + [True] * 7
    assert z.grad[0].isfinite().all()
    assert z.grad[1:].isnan().all()


@pytest.mark.skipif("torch.cuda.device_count() < 2", reason="one GPU")
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_on_a_device_that_is_not_the_current_one(backend):
    problem = Case(targets="hard-100").problem("cuda:0")
    moved = problem._replace(
        **{
            name: value.to("cuda:1")
            for name, value in problem._asdict().items()
            if isinstance(value, torch.Tensor)
        }
    )
    first, second = fused(problem, backend), fused(moved, backend)
    assert torch.cuda.current_device() == 0
    for name, value in second.items():
        assert value.device.index == 1
        assert torch.equal(value.cpu(), first[name].cpu()), name
