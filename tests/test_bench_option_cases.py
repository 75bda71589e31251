"""Each option as its time is measured: the same loss and gradients in both ways."""

import pytest
import torch

from fused_loss.bench import options
from fused_loss.bench.option_cases import CASES, problem


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_ways_have_the_same_gradients(case):
    """In a size of the closed form too: rows that are turned."""
    for size in ((40, 5, 3), (200, 3, 2)):
        p = problem(*size)
        found = []
        for loss in (options._ours(case, p), case.composed):
            found.append(torch.autograd.grad(loss(p).sum(), (p.r, p.z)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
