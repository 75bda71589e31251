"""Each way of running a model is right, and what is wrong is named and has no time."""

from pathlib import Path

import numpy as np
import pytest
from _bench import CPU

from fused_loss.bench import needs, runtimes
from fused_loss.bench.cases import Phase
from fused_loss.bench.kinds import INFERENCE
from fused_loss.bench.measure import Plan
from fused_loss.bench.models import ModelCase, build
from fused_loss.bench.run import Record, run_case
from fused_loss.bench.runtimes import RUNTIMES, exported

MLP, CNN = ModelCase("mlp-256", 5), ModelCase("cnn", 3)
ONNX = ["onnx-unoptimised", "onnx", "onnx-bound"]
PLAN = Plan(rounds=2)


def record_of(case: ModelCase, *names: str, phase: Phase = Phase.ONE_THREAD) -> Record:
    return next(run_case(case, [RUNTIMES[name] for name in names], CPU, PLAN, phases=[phase]))


def test_there_are_six_and_ours_are_onnx():
    assert list(RUNTIMES) == ["eager", "compile", "aot", *ONNX]
    assert [provider.name for provider in RUNTIMES.values() if provider.ours] == ONNX


@pytest.mark.parametrize("case", [MLP, CNN], ids=lambda case: case.name)
@pytest.mark.parametrize("phase", [Phase.ONE_THREAD, Phase.TWO_THREADS])
def test_eager_and_onnxruntime_are_right_and_timed(case: ModelCase, phase: Phase):
    record = record_of(case, "eager", *ONNX, phase=phase)
    assert [(row.reason, row.status) for row in record.rows] == [(None, "ok")] * 4
    assert all(row.timing and row.errors and not row.footprint for row in record.rows)
    written = record.as_json()
    assert written["threads"] == phase.threads
    assert all(row["ratio_to_eager"] > 0 for row in written["providers"])


@pytest.mark.parametrize("name", ["compile", pytest.param("aot", marks=pytest.mark.slow)])
def test_what_is_compiled_is_right_and_timed(name: str):
    record = record_of(MLP, "eager", name)
    assert [(row.reason, row.status) for row in record.rows] == [(None, "ok")] * 2
    assert all(row.timing for row in record.rows)


def test_the_session_is_as_asked():
    options = runtimes.session(exported("mlp-256"), runtimes.OFF, 2).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level.name == runtimes.OFF


def test_bound_outputs_follow_the_batch():
    program = RUNTIMES["onnx-bound"].program(MLP, Phase.ONE_THREAD, CPU)
    batches = [MLP.make(seed=seed) for seed in (1, 2, 1)]
    first, second, again = ([x.numpy().copy() for x in program(batch)] for batch in batches)
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, second))


@pytest.mark.parametrize("name", ONNX)
def test_the_file_of_another_model_is_named_and_not_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = build("mlp-256")
    other.classification_head.bias.data[3] += 1e-3
    wrong = runtimes.export_onnx(other, MLP.make().x, tmp_path / "other.onnx").path
    session = runtimes.session
    monkeypatch.setattr(runtimes, "session", lambda path, *rest: session(wrong, *rest))
    row = record_of(MLP, "eager", name).rows[1]
    assert (row.status, row.timing, row.disgrace) == ("wrong", None, True)
    assert (row.reason or "").startswith("classification output")


def test_what_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    assert all(provider.available(CPU) is None for provider in INFERENCE.providers.values())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in (RUNTIMES["aot"].available(CPU) or "")
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda module: None)
    for name in ONNX:
        assert "pip install 'fused-loss[export]'" in (RUNTIMES[name].available(CPU) or "")
