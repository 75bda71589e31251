import inspect

import pytest
import torch

from fused_loss import combined_loss
from fused_loss.bench.accuracy_options import OPTIONS, C, N
from fused_loss.options import Options

CPU = torch.device("cpu")
F32 = (torch.float32, torch.float32)


def test_every_option_of_the_loss_has_a_row():
    shown = {name for option in OPTIONS for name in (*option.keywords, *option.tensors)}
    keywords = inspect.signature(combined_loss).parameters.keys() - {"return_components"}
    options = {*Options.__annotations__, "alpha", "loss_weights"}
    assert options < keywords
    assert options - shown == {"ignore_index"}  # a row without keywords: the default, -100
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_a_row_is_a_legal_call_that_repeats(option):
    problem, again = (option.problem(F32, 3, CPU) for _ in range(2))
    for one, other in zip(problem[:4], again[:4], strict=True):
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9))
    keywords = {k: v for k, v in problem.keywords.items() if k != "task_losses"}
    loss = combined_loss(problem.r, problem.z, problem.y, problem.t, **keywords)
    assert loss.isfinite().all()
    assert loss.shape == problem.grad_output.shape
    if option.ignored:
        missing = problem.y.isnan() if "nan_targets" in keywords else problem.t == -100
        assert missing.any()
        assert missing.all() == (option.ignored == 1.0)
    if "class_mask" in keywords:
        assert problem.keywords["class_mask"].shape == problem.z.shape
        assert not problem.keywords["class_mask"].all()
    assert problem.z.shape[:2] == (N, C)


def test_the_values_are_rounded_to_the_dtypes():
    problem = OPTIONS[0].problem((torch.bfloat16, torch.float16), 0, CPU)
    assert (problem.r.dtype, problem.z.dtype) == (torch.bfloat16, torch.float16)
    whole = OPTIONS[0].problem(F32, 0, CPU)
    assert torch.equal(problem.z, whole.z.half())
