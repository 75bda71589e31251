"""A case's run: what is wrong has no time, what fails spoils nothing else."""

import os
from dataclasses import replace

import pytest
import torch
from _bench import CPU, SMALL, fails, gradient_off, refuses, value_off

from fused_loss.bench import PROVIDERS, Phase, Provider
from fused_loss.bench.measure import Plan
from fused_loss.bench.run import Record, Row, run_case

PLAN = Plan(rounds=2)
EAGER, COPY = PROVIDERS["eager"], PROVIDERS["copy"]


def record_of(*providers: Provider, phase: Phase = Phase.TRAINING) -> Record:
    return run_case(SMALL, phase, providers, CPU, PLAN)


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


def test_progress_grows_to_one():
    shares: list[float] = []
    run_case(SMALL, Phase.FORWARD, [EAGER, COPY], CPU, PLAN, lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_compile_and_fused_are_right_and_timed():
    record = record_of(EAGER, PROVIDERS["compile"], PROVIDERS["fused-eager"])
    assert [(row.reason, row.status) for row in record.rows] == [(None, "ok")] * 3
    assert all(row.timing is not None for row in record.rows)
