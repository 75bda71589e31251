"""Every input is bit for bit what it was, after any call and its backward passes."""

from dataclasses import replace

import pytest
import torch
from _asserts import leaves
from _cases import COVERING, FACTORS, PLACES, Case

import fused_loss
from fused_loss import combined_loss, task_losses

EVERYWHERE = [*(pytest.param(x, "cpu", id=f"{x}-cpu") for x in ("reference", "auto")), *PLACES]
PLAIN = Case(weighting="alpha")  # what `auto` gives to PyTorch ahead of every check
BASE = Case(weighting="alpha-tensor", upstream="other")
EACH_OPTION = dict.fromkeys(
    replace(case, **{name: level})
    for case in (BASE, PLAIN)
    for name, levels in FACTORS.items()
    for level in levels
)


def bytes_of(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8)


class Snapshot:
    """The version and the bytes of tensors."""

    def __init__(self, tensors):
        self.tensors = list(tensors)
        self.before = [(x._version, bytes_of(x).clone()) for x in self.tensors]

    def assert_unchanged(self):
        for tensor, (version, content) in zip(self.tensors, self.before, strict=True):
            assert tensor._version == version
            assert torch.equal(bytes_of(tensor), content)


@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
@pytest.mark.parametrize("case", [*EACH_OPTION, *COVERING[::4]], ids=str)
def test_nothing_of_the_callers_is_written(case, backend, device):
    """Without a gradient, and with one, twice; the logits that are given away are another tensor.

    Without a gradient they are not given away.
    """
    problem = case.problem(device)
    taken, keywords = leaves(problem)
    held = [taken["r"], taken["z"], problem.y, problem.t, problem.grad_output]
    held += [value for value in keywords.values() if torch.is_tensor(value)]
    snapshot = Snapshot(held)
    arguments = taken["r"], taken["z"], problem.y, problem.t
    with fused_loss.backend(backend):
        with torch.no_grad():
            combined_loss(*arguments, **keywords)
        snapshot.assert_unchanged()
        keywords["inplace_gradient"] = given_away = case.inplace and backend != "reference"
        if given_away:
            arguments = taken["r"], taken["z"].clone(), problem.y, problem.t
        loss = combined_loss(*arguments, **keywords)
    for _ in range(1 if given_away else 2):
        torch.autograd.grad(loss, list(taken.values()), problem.grad_output, retain_graph=True)
    snapshot.assert_unchanged()


@pytest.mark.parametrize(("backend", "device"), EVERYWHERE)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nor_by_task_losses(reduction, backend, device):
    problem = replace(COVERING[0], reduction=reduction, normalizers="").problem(device)
    taken, keywords = leaves(problem)
    options = {k: v for k, v in keywords.items() if k not in ("alpha", "loss_weights")}
    options |= {"inplace_gradient": False}
    held = [taken["r"], taken["z"], problem.y, problem.t, problem.grad_output]
    snapshot = Snapshot([*held, *(value for value in options.values() if torch.is_tensor(value))])
    with fused_loss.backend(backend):
        losses = task_losses(taken["r"], taken["z"], problem.y, problem.t, **options)
    for loss, name in zip(losses, ("r", "z"), strict=True):
        torch.autograd.grad(loss, taken[name], problem.grad_output, retain_graph=True)
    torch.autograd.grad(sum(losses), (taken["r"], taken["z"]), problem.grad_output)
    snapshot.assert_unchanged()
