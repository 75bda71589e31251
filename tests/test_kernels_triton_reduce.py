import pytest
from _asserts import assert_matches, fused, launched
from _cases import COVERING, PRODUCT, TRITON_PLACES

CASES = [case for case in PRODUCT + COVERING if case.reduction != "none"]


@pytest.mark.parametrize(("backend", "device"), TRITON_PLACES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradients_in_one_launch(case, backend, device):
    """Backward it is a scaling, or the same kernel where the gradient waited."""
    problem = case.problem(device)
    actual, forward, backward = launched(problem)
    assert forward == ["reduce_kernel"]
    assert backward == (["reduce_kernel"] if case.gradient_waits else ["scale_kernel"])
    assert_matches(problem, actual, fused(problem, "reference"))
