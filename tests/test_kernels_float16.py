"""float16 under a GradScaler: no gradient is lost that autocast would have kept."""

import numpy as np
import pytest
import torch
from _asserts import composed, expected, fused, numpy
from _cases import F16, F32, PLACES, REDUCTIONS, Case

pytestmark = pytest.mark.parametrize(("backend", "device"), PLACES)

SCALE = 65536.0
SMALL = (2.0**-17, 2.0**-16)  # weights that stand for a batch of a hundred thousand


def scaled_problem(case, device):
    """Probabilities down to e^-12: most gradients are far below what float16 can hold unscaled."""
    problem = case.problem(device)
    return problem._replace(
        z=problem.z * 1.5,
        keywords={**problem.keywords, "loss_weights": SMALL},
        weights=SMALL,
        grad_output=torch.full_like(problem.grad_output, SCALE),
    )


@pytest.mark.parametrize("dtypes", [(F16, F16), (F16, F32), (F32, F16)], ids=str)
@pytest.mark.parametrize("targets", ["hard-100", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_each_element_is_as_good_as_under_autocast(reduction, targets, dtypes, backend, device):
    """Within PyTorch's own error and a step of float16 at that very element, however small.

    PyTorch's operators run in float32 here, as autocast runs losses, and round once.
    """
    case = Case(reduction, targets=targets, weighting="pair", dtypes=dtypes)
    problem = scaled_problem(case, device)
    actual, autocast, (oracle, _) = fused(problem, backend), composed(problem), expected(problem)
    unscaled = fused(problem._replace(grad_output=problem.grad_output / SCALE), backend)
    for name, dtype in zip(("r", "z"), dtypes, strict=True):
        if dtype != F16:
            continue
        truth = oracle[name].astype(np.float64)
        own = np.abs(numpy(autocast[name]) - truth)
        off = np.abs(numpy(actual[name]) - truth)
        step = np.spacing(np.abs(truth).astype(np.float16)).astype(np.float64)
        assert (off <= own + step).all()
        assert ((numpy(actual[name]) != 0) >= (numpy(autocast[name]) != 0)).all()
        # It is the scale that saves them.
        assert np.abs(SCALE * numpy(unscaled[name]) - truth).sum() > off.sum()


def test_an_overflow_is_seen_by_the_scaler(backend, device):
    """A gradient beyond 65504 is infinite, as autocast's is: the scaler then skips the step."""
    problem = Case("sum", dtypes=(F16, F16)).problem(device)
    problem = problem._replace(grad_output=torch.full_like(problem.grad_output, 2.0**20))
    actual, autocast = fused(problem, backend), composed(problem)
    assert torch.equal(actual["z"].isinf(), autocast["z"].isinf())
    assert actual["z"].isinf().any()
    assert not actual["z"].isnan().any()
