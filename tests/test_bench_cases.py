"""A case's bytes, by hand, and its inputs."""

import pytest
import torch

from fused_loss.bench.cases import IGNORE_INDEX, LOSS_PHASES, MOST_TRAINED, Case, Phase
from fused_loss.bench.suites import SUITES

# (case, bytes of the forward pass, bytes of both passes)
BY_HAND = [
    # logits 100·2·4 = 800, class indices 100·8 = 800, r and y 2·100·4 = 800;
    # then the gradients 800 and 400
    (Case("indices", "test", 100, 2), 2400, 3600),
    # 18 labelled rows of 7·2 = 14: 252, class indices 20·8 = 160, r and y 2·20·4 = 160;
    # then the gradients 20·14 = 280 and 80
    (Case("tokens", "test", 20, 7, (), (), "bfloat16", ignored=0.1), 572, 932),
    # 2·4 positions of 3·4 = 12: logits 96 and probabilities 96, r and y 2·8 = 16, weights 12;
    # then the gradients 96 and 8
    (
        Case("dense", "test", 2, 3, positions=(4,), soft_targets=True, class_weight=True),
        220,
        324,
    ),
]


@pytest.mark.parametrize(
    ("case", "forward", "training"), BY_HAND, ids=lambda value: str(value)[:20]
)
def test_bytes_moved(case: Case, forward: int, training: int):
    assert case.bytes_moved(Phase.FORWARD) == forward
    assert case.bytes_moved(Phase.TRAINING) == training
    assert case.bytes_moved(Phase.SCALED) == training
    written = case.as_json()["bytes_moved"]
    assert (written["forward"], written["forward+backward"]) == (forward, training)
    assert set(written) == {phase.value for phase in case.phases}


# (case, operations of the forward pass, of both passes)
@pytest.mark.parametrize(
    ("place", "forward", "training"),
    [
        # 200 logits at 4, 100 elements at 3; then 200 and 100
        (0, 1100, 1400),
        # 18 labelled rows of 7 logits at 4, 20 elements at 3; then 126 and 20
        (1, 564, 710),
        # 24 logits at 6, 2 elements at 3; then 48 and 2
        (2, 150, 200),
    ],
)
def test_flops(place: int, forward: int, training: int):
    case = BY_HAND[place][0]
    assert (case.flops(Phase.FORWARD), case.flops(Phase.TRAINING)) == (forward, training)


@pytest.mark.parametrize("case", SUITES["smoke"], ids=lambda case: case.name)
def test_inputs_have_the_form_that_the_case_says(case: Case):
    r, z, y, t, weight = case.make(seed=3)
    assert r.shape == y.shape == (case.N, *case.features)
    assert z.shape == (case.N, case.C, *case.positions)
    assert str(r.dtype) == str(y.dtype) == f"torch.{case.regression_dtype}"
    assert str(z.dtype) == f"torch.{case.logits_dtype}"
    assert all(x.is_leaf and x.requires_grad for x in (r, z))
    assert (weight is not None) == case.class_weight
    if case.soft_targets:
        assert t.shape == z.shape
        torch.testing.assert_close(t.sum(1), torch.ones(case.N, dtype=t.dtype))
    else:
        assert t.shape == (case.N, *case.positions)
        ignored = t == IGNORE_INDEX
        assert int(ignored.sum()) == case.ignored_positions
        assert bool(((t >= 0) & (t < case.C) | ignored).all())


@pytest.mark.parametrize("case", SUITES["smoke"], ids=lambda case: case.name)
def test_inputs_are_random_and_repeat_with_the_seed(case: Case):
    first, again, other = case.make(seed=1), case.make(seed=1), case.make(seed=2)
    for x, same, different in zip(first, again, other, strict=True):
        if x is not None:
            assert torch.equal(x, same)
            assert not torch.equal(x, different)
            assert x.unique().numel() > 1


def test_a_training_step_is_of_a_batch():
    small, large = (Case("batch", "test", N, 2) for N in (MOST_TRAINED, MOST_TRAINED + 1))
    assert small.phases == LOSS_PHASES
    assert large.phases == Case("dense", "test", 2, 2, positions=(3,)).phases
    assert set(LOSS_PHASES) - set(large.phases) == {Phase.STEP}


def test_a_cpu_needs_one_set_of_inputs():
    assert BY_HAND[0][0].input_sets(torch.device("cpu")) == 1


@pytest.mark.gpu
def test_a_gpu_rotates_among_more_than_its_cache_holds():
    device = torch.device("cuda", 0)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    case = Case("large", "test", 4096, 4096)
    rotated = (case.input_sets(device) - 1) * case.bytes_moved(Phase.FORWARD)
    assert rotated >= 3 * cache


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"C": 0}, "at least 1"),
        ({"logits_dtype": "int8"}, "dtype must be one of"),
        ({"soft_targets": True, "ignored": 0.1}, "no ignored positions"),
    ],
)
def test_a_case_that_no_loss_could_take_is_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Case(**{"name": "bad", "family": "test", "N": 2, "C": 2} | fields)
