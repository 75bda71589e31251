"""Every option at once, as only a GPU can show it: launches, waits, capture, streams."""

from dataclasses import replace

import pytest
import torch
from _asserts import assert_matches, fused, leaves
from _cases import BF16, EVERY_OPTION, F32, REDUCTIONS
from _gpu import captured, device_kernels

import fused_loss
from fused_loss import combined_loss

pytestmark = pytest.mark.gpu

FULLEST = replace(EVERY_OPTION, normalizers="", empty="zero", shapes=((64, 8), (64, 300)))
BACKENDS = ["eager", "triton"]


@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F32, BF16)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_option_at_once(backend, dtypes, reduction, targets):
    problem = replace(FULLEST, reduction=reduction, targets=targets, dtypes=dtypes).problem("cuda")
    assert_matches(problem, fused(problem, backend), fused(problem, "reference"))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_waits_for_the_device(backend, reduction):
    problem = replace(FULLEST, reduction=reduction).problem("cuda")
    expected = fused(problem, backend)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = fused(problem, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(actual[name], expected[name]) for name in actual)


@pytest.mark.parametrize(("samples", "kernels"), [(64, 1), (1 << 15, 2)], ids=["few", "many"])
def test_one_launch_and_one_that_counts_where_there_is_much_to_count(samples, kernels):
    problem = replace(FULLEST, shapes=((samples, 8), (samples, 300))).problem("cuda")
    taken, keywords = leaves(problem)

    def step():
        with fused_loss.backend("triton"):
            return combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)

    step()
    assert device_kernels(step)[0] == kernels


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_replayed_graph_beside_two_streams(reduction):
    """All run the same shape at once, and each has the bits of a lone run."""
    problem = replace(FULLEST, reduction=reduction, shapes=((4096, 8), (4096, 1000)))
    problem = problem.problem("cuda")
    alone = fused(problem, "triton")
    taken, keywords = leaves(problem)

    def step():
        with fused_loss.backend("triton"):
            loss = combined_loss(taken["r"], taken["z"], problem.y, problem.t, **keywords)
        return loss, *torch.autograd.grad(loss, (taken["r"], taken["z"]), problem.grad_output)

    graph, outputs = captured(step)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for _ in range(20):
        with torch.cuda.stream(streams[0]):
            graph.replay()
        found = []
        for stream in streams[1:]:
            with torch.cuda.stream(stream):
                found.append(fused(problem, "triton"))
        torch.cuda.synchronize()
        for result in found:
            assert all(torch.equal(result[name], alone[name]) for name in alone)
        for value, name in zip(outputs, ("loss", "r", "z"), strict=True):
            assert torch.equal(value, alone[name])
