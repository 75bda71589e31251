"""A case's run: what is wrong has no time, what fails spoils nothing else."""

import os
from dataclasses import replace

import _bench
import pytest
import torch
from _bench import CPU, SMALL, fails, gradient_off, refuses, slowed, value_off
from torch import Tensor

from fused_loss.bench import PROVIDERS, Case, Inputs, Phase, Provider
from fused_loss.bench.cases import LOSS_PHASES, MODEL_PHASES
from fused_loss.bench.measure import Plan, Timing
from fused_loss.bench.models import Batch, ModelCase, build
from fused_loss.bench.programs import Step
from fused_loss.bench.providers import eager_loss, from_loss
from fused_loss.bench.run import Record, Row, run_case
from fused_loss.bench.runtimes import at_first_call
from fused_loss.bench.steps import Loss

PLAN = Plan(rounds=2)
EAGER, COPY = PROVIDERS["eager"], PROVIDERS["copy"]


def record_of(*providers: Provider, phase: Phase = Phase.TRAINING) -> Record:
    return next(run_case(SMALL, providers, CPU, PLAN, phases=[phase]))


def row_of(record: Record, provider: Provider) -> Row:
    return next(row for row in record.rows if row.provider is provider)


@pytest.mark.parametrize(
    ("provider", "output"),
    [(gradient_off, "classification gradient"), (value_off, "loss")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_wrong_provider_is_named_and_not_timed(provider: Provider, output: str):
    record = record_of(EAGER, provider)
    row = row_of(record, provider)
    assert (row.status, row.timing) == ("wrong", None)
    assert (row.reason or "").startswith(output)
    assert row_of(record, EAGER).timing is not None
    entry = record.as_json()["providers"][1]
    assert "median_s" not in entry
    assert entry["errors"][output]["norm"] > entry["allowed"][output]["norm"]


def test_a_wrong_gradient_does_not_count_where_none_is_asked_for():
    assert row_of(record_of(gradient_off, phase=Phase.FORWARD), gradient_off).status == "ok"


@pytest.mark.parametrize(
    ("provider", "status", "reason"),
    [
        (fails, "failed", "ArithmeticError: out of order"),
        (refuses, "unsupported", "does not take this case"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_provider_that_raises_spoils_nothing_else(provider: Provider, status: str, reason: str):
    record = record_of(provider, EAGER, COPY)
    row = row_of(record, provider)
    assert (row.status, row.reason, row.timing) == (status, reason, None)
    assert record.median("eager") is not None
    assert record.median("copy") is not None


def test_only_this_package_can_disgrace_itself():
    ours = replace(gradient_off, name="ours", ours=True)
    assert row_of(record_of(ours), ours).disgrace
    assert not row_of(record_of(gradient_off), gradient_off).disgrace
    refusing = replace(refuses, ours=True)  # a stated limit is not an error
    assert not row_of(record_of(refusing), refusing).disgrace


def test_ratios_are_of_the_same_run():
    record = record_of(EAGER, COPY)
    row = row_of(record, EAGER)
    assert row.timing is not None
    assert record.ratio(row, "eager") == 1.0
    assert record.ratio(row, "copy") == row.timing.median / record.median("copy")
    assert record.ratio(row, "absent") is None
    assert record_of(EAGER).ratio(row, "copy") is None


def test_a_record_says_when_the_machine_was_shared(monkeypatch: pytest.MonkeyPatch):
    record = record_of(EAGER)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    record.neighbours = 0.9
    assert record.crowded
    assert record.as_json()["crowded"]
    for harmless in (0.0, 0.1, None):
        record.neighbours = harmless
        assert not record.crowded
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    record.neighbours = 0.9  # there are cores to spare
    assert not record.crowded


def test_a_phase_may_say_how_many_threads_there_are(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def counting(case: Case, threads: int, batch: Batch) -> Step:
        model = build(case.model)
        return lambda batch: (seen.append(torch.get_num_threads()), model(batch.x))[1]

    before = torch.get_num_threads()
    provider = Provider("counting", at_first_call(counting))
    case = ModelCase("mlp-256", 2)
    for phase in MODEL_PHASES:
        record = next(run_case(case, [provider], CPU, PLAN, phases=[phase]))
        assert set(seen) == {phase.threads} == {record.threads}
        assert torch.get_num_threads() == before
        seen.clear()


def test_progress_grows_to_one():
    shares: list[float] = []
    records = list(run_case(SMALL, [EAGER, COPY], CPU, PLAN, lambda share, _: shares.append(share)))
    assert [record.phase for record in records] == list(LOSS_PHASES)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_slowed_provider_is_right_all_the_same(monkeypatch: pytest.MonkeyPatch):
    now = iter(range(100))  # seconds: a step takes 1, so it is slowed until 4 have passed
    read: list[int] = []
    monkeypatch.setattr(_bench.time, "perf_counter", lambda: read.append(next(now)) or read[-1])
    slow = slowed(PROVIDERS["fused-auto"], 4.0)
    inputs = SMALL.make()
    right = PROVIDERS["fused-auto"].program(SMALL, Phase.TRAINING, CPU)(inputs)
    found = slow.program(SMALL, Phase.TRAINING, CPU)(inputs)
    assert all(map(torch.equal, found, right))
    assert read == [0, 1, 2, 3, 4, 5][: len(read)]
    assert read[-1] - read[0] >= 4


def test_compile_and_fused_are_right_and_timed():
    record = record_of(EAGER, PROVIDERS["compile"], PROVIDERS["fused-auto"])
    assert [(row.reason, row.status) for row in record.rows] == [(None, "ok")] * 3
    assert all(row.timing is not None for row in record.rows)


def test_a_phase_has_the_providers_that_take_part_in_it():
    everyone = [EAGER, PROVIDERS["eager-float32"], COPY, PROVIDERS["model-alone"]]
    for record in run_case(SMALL, everyone, CPU, PLAN):
        floor = "model-alone" if record.phase is Phase.STEP else "copy"
        assert [row.provider.name for row in record.rows] == ["eager", floor]
    half = replace(SMALL, logits_dtype="bfloat16")
    record = next(run_case(half, everyone, CPU, PLAN))
    assert [row.provider.name for row in record.rows] == ["eager", "eager-float32", "copy"]


def test_dense_cases_have_no_small_model():
    dense = replace(SMALL, features=(2, 2), positions=(2, 2))
    phases = [record.phase for record in run_case(dense, [EAGER], CPU, PLAN)]
    assert phases == [phase for phase in LOSS_PHASES if phase is not Phase.STEP]


def test_what_is_wrong_alone_is_not_timed_in_a_training_step():
    *_, training, _, step = run_case(SMALL, [gradient_off], CPU, PLAN)
    assert [record.rows[0].status for record in (training, step)] == ["wrong", "wrong"]
    assert step.rows[0].timing is None
    assert step.rows[0].reason == training.rows[0].reason
    alone = record_of(gradient_off, phase=Phase.STEP).rows[0]  # without the other phases
    assert (alone.status, alone.timing, alone.reason) == ("wrong", None, step.rows[0].reason)


def test_the_share_of_the_loss_is_what_the_model_alone_leaves(monkeypatch: pytest.MonkeyPatch):
    record = record_of(EAGER, PROVIDERS["model-alone"], phase=Phase.STEP)
    row = row_of(record, EAGER)
    row.timing = Timing((4.0,), 1, "wall")
    row_of(record, PROVIDERS["model-alone"]).timing = Timing((3.0,), 1, "wall")
    assert record.loss_share(row) == pytest.approx(0.25)
    assert record_of(EAGER, phase=Phase.STEP).loss_share(row) is None


def test_the_scale_reaches_the_gradients():
    def off(case: Case) -> Loss:
        right = eager_loss(case)

        class Unscaled(torch.autograd.Function):
            """A backward pass that takes grad_output for 1: a defect seen in the wild."""

            @staticmethod
            def forward(ctx, value: Tensor) -> Tensor:
                return value.clone()

            @staticmethod
            def backward(ctx, grad: Tensor) -> Tensor:
                return torch.ones_like(grad)

        return lambda inputs: Unscaled.apply(right(inputs))

    provider = Provider("unscaled", from_loss(off))
    assert row_of(record_of(provider), provider).status == "ok"
    assert row_of(record_of(provider, phase=Phase.SCALED), provider).status == "wrong"


def test_a_peer_that_overwrites_its_inputs_is_checked_on_its_own():
    def off(case: Case) -> Loss:
        right = eager_loss(case)

        def loss(inputs: Inputs) -> Tensor:
            value = right(inputs) + 0.0
            inputs.classification_targets.zero_()
            return value

        return loss

    vandal = Provider("vandal", from_loss(off), overwrites=True)
    record = record_of(vandal, EAGER, phase=Phase.FORWARD)
    assert [row.status for row in record.rows] == ["ok", "ok"]
