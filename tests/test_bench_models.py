"""The models, by hand, and what is wrong with their outputs."""

import os

import numpy as np
import pytest
import torch
from _bench import CPU

from fused_loss.bench import models
from fused_loss.bench.cases import MODEL_PHASES, Phase
from fused_loss.bench.kinds import INFERENCE
from fused_loss.bench.models import MODELS, ModelCase, build

PHASE = Phase.ONE_THREAD
CASES = [ModelCase(model, 3) for model in MODELS]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

# (parameters, multiplications of a row, numbers in and out of it)
BY_HAND = {
    # 64·256 + 256·256 + 256·(4 + 10), and a bias an output
    "mlp-256": (85504 + 256 + 256 + 14, 85504, 64 + 14),
    # 784·16·9 + 196·32·16·9 + 1568·(4 + 10); weights 16·9 + 32·16·9 + 1568·14
    "cnn": (144 + 4608 + 21952 + 16 + 32 + 14, 112896 + 903168 + 21952, 784 + 14),
}


@every_case
def test_bytes_and_operations_by_hand(case: ModelCase):
    parameters, products, outside = BY_HAND[case.model]
    assert case.bytes_moved(PHASE) == 4 * (parameters + 3 * outside)
    assert case.flops(PHASE) == 3 * 2 * products
    written = case.as_json()
    assert (written["name"], written["family"], written["N"]) == (
        f"{case.model}-batch-3",
        "inference",
        3,
    )
    assert written["flops"] == {phase.value: case.flops(phase) for phase in case.phases}


@every_case
def test_a_model_and_its_rows_are_the_same_each_time(case: ModelCase):
    one, two = build(case.model), build(case.model)
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    x, array = case.make(CPU, seed=1)
    assert np.shares_memory(x.numpy(), array)
    assert torch.equal(x, case.make(CPU, seed=1).x)
    assert not torch.equal(x, case.make(CPU, seed=2).x)
    for output in one(x):
        output = output.detach()
        assert 0.05 < float(output.std()) < 20  # no layer fades out or blows up


def test_two_threads_need_two_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert CASES[0].phases == MODEL_PHASES[:1]
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert CASES[0].phases == MODEL_PHASES


@every_case
@pytest.mark.parametrize("rows", [1, 2, 512])
def test_eager_is_right_whatever_the_blocks(
    case: ModelCase, rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "BLOCK_ROWS", rows)
    batch = case.make(CPU, seed=3)
    outputs = tuple(output.detach() for output in build(case.model)(batch.x))
    of_eager = INFERENCE.eager_errors(case, PHASE, batch, CPU)
    found, allowed, complaint = INFERENCE.verdict(case, PHASE, batch, outputs, of_eager)
    assert complaint is None
    assert tuple(found) == tuple(allowed) == models.OUTPUTS


@pytest.mark.parametrize("index", [0, 1])
def test_a_wrong_output_is_named(index: int):
    case, batch = CASES[0], CASES[0].make(CPU, seed=4)
    outputs = [output.detach().numpy() for output in build(case.model)(batch.x)]
    outputs[index] = outputs[index].copy()
    outputs[index][-1, -1] += 1e-4 * abs(outputs[index]).max()
    of_eager = INFERENCE.eager_errors(case, PHASE, batch, CPU)
    complaint = INFERENCE.verdict(case, PHASE, batch, tuple(outputs), of_eager)[2]
    assert (complaint or "").startswith(models.OUTPUTS[index])


@pytest.mark.parametrize(
    "spoil",
    [lambda r, c: (r,), lambda r, c: (c, r), lambda r, c: (r.double(), c), lambda r, c: (r[:2], c)],
    ids=["one", "swapped", "dtype", "rows"],
)
def test_outputs_of_another_form_are_refused(spoil):
    case, batch = CASES[0], CASES[0].make(CPU)
    with pytest.raises(ValueError, match=r"float32 \(3, 4\) and \(3, 10\)"):
        models.errors(case, PHASE, batch, spoil(*build(case.model)(batch.x)))
