"""`fused-loss bench` from its arguments to its table and its file. No time decides."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _bench import CPU, gradient_off
from _bench_results import simple, write

from fused_loss.bench import PROVIDERS, SUITES, Phase, report
from fused_loss.bench.cases import LOSS_PHASES, MODEL_PHASES
from fused_loss.bench.stored import load
from fused_loss.cli import main

ROOT = Path(__file__).parents[1]
QUICK = ["--rounds", "2", "--providers", "eager,fused-auto,copy", "--device", "cpu"]


def bench(*words: str) -> int:
    parser = argparse.ArgumentParser()
    report.configure(parser)
    return report.run(parser.parse_args(words))


def test_the_smoke_suite_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """Its first two cases; `.ci/run` runs them all."""
    monkeypatch.setitem(SUITES, "smoke", SUITES["smoke"][:2])
    assert bench("--suite", "smoke", *QUICK, "--out", str(tmp_path)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "report.md", "speedup.png", "memory.png", "overhead.png")
    }
    results = load(tmp_path)
    assert results["complete"]
    assert results["command"].startswith("fused-loss bench --suite smoke")
    assert results["environment"]["threads"]["torch"] == torch.get_num_threads()
    assert results["environment"]["packages"]["torch"]
    assert results["environment"]["device"]["type"] == "cpu"
    expected = {(case.name, phase.value) for case in SUITES["smoke"] for phase in LOSS_PHASES}
    assert {(r["case"]["name"], r["phase"]) for r in results["records"]} == expected
    for record in results["records"]:
        check_record(record)
    printed = capsys.readouterr().out
    assert all(case.name in printed for case in SUITES["smoke"])
    assert all(word in printed for word in ("fused-auto", "µs", "spread", "÷ eager", "÷ copy"))
    assert "below 1 is faster" in " ".join(printed.split())


def check_record(record: dict) -> None:
    rows = {row["name"]: row for row in record["providers"]}
    step = record["phase"] == Phase.STEP.value
    assert set(rows) == {"eager", "fused-auto"} | ({"copy"} if not step else set())
    for name, row in rows.items():
        assert (row["status"], row["reason"]) == ("ok", None)
        assert len(row["samples_s"]) == 2
        # samples are written with four digits
        assert row["median_s"] == pytest.approx(statistics.median(row["samples_s"]), rel=1e-3)
        assert row["p10_s"] <= row["median_s"] <= row["p90_s"]
        for other in rows.keys() - {"fused-auto"}:
            assert row[f"ratio_to_{other}"] == row["median_s"] / rows[other]["median_s"]
        moved = record["case"]["bytes_moved"][record["phase"]]
        assert row["bytes_per_s"] == moved / row["median_s"]
        assert (row["errors"] is None) == (step or name == "copy")


def test_the_users_own_shape(tmp_path: Path):
    words = ("--shape", "16,10,3", "--dtype", "float64", *QUICK, "--out", str(tmp_path))
    assert bench(*words) == 0
    records = load(tmp_path)["records"]
    assert {record["case"]["name"] for record in records} == {"16x10x3-float64"}
    assert [record["phase"] for record in records] == [phase.value for phase in LOSS_PHASES]


def test_a_wrong_provider_of_this_package_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    wrong = replace(gradient_off, name="fused-auto", ours=True)
    monkeypatch.setitem(PROVIDERS, "fused-auto", wrong)
    assert bench("--shape", "16,10,3", *QUICK) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "WRONG fused-auto on 16x10x3-float32, forward+backward: classification" in printed
    assert "norm error" in printed


def test_a_wrong_peer_does_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(PROVIDERS, "peer", replace(gradient_off, name="peer"))
    assert bench("--shape", "16,10,3", "--providers", "peer,copy", "--rounds", "1") == 0
    assert "WRONG" in capsys.readouterr().out


def test_inference_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(SUITES, "onnx", SUITES["onnx"][:1])
    words = ("--suite", "onnx", "--rounds", "2", "--providers", "eager,onnx,onnx-bound")
    assert bench(*words, "--out", str(tmp_path)) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"results.json", "report.md", "inference.png"}
    results = load(tmp_path)
    assert results["complete"]
    assert [record["phase"] for record in results["records"]] == [p.value for p in MODEL_PHASES]
    for record in results["records"]:
        assert [row["name"] for row in record["providers"]] == ["eager", "onnx", "onnx-bound"]
        assert all(row["median_s"] > 0 and row["errors"] for row in record["providers"])
    assert "rows/s" in capsys.readouterr().out
    assert bench("compare", str(tmp_path), str(tmp_path), "--to", "eager") in (0, 2)


def test_a_mixed_suite_takes_the_providers_of_either(monkeypatch: pytest.MonkeyPatch):
    cases = (SUITES["smoke"][0], SUITES["onnx"][0])
    teams = report._teams(cases, None, CPU)
    assert list(teams) == ["loss", "inference"]
    assert teams["loss"].absent["cut-cross-entropy"].endswith("pip install cut-cross-entropy")
    teams = report._teams(cases, "onnx,eager", CPU)
    assert [p.name for p in teams["inference"].providers] == ["onnx", "eager"]
    assert [p.name for p in teams["loss"].providers] == ["eager"]
    assert list(report._teams(cases, "copy", CPU)) == ["loss"]


def test_a_limit_ends_the_run_and_the_report_says_so(tmp_path: Path):
    words = ("--shape", "16,10,3", *QUICK, "--limit", "1e-9", "--out", str(tmp_path))
    assert bench(*words) == 0
    results = load(tmp_path)
    assert len(results["records"]) == 1
    assert not results["complete"]
    assert "--limit 1e-09" in results["command"]
    assert "Cut short" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_run_cut_short_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args, **kwargs):
        yield next(run_case(*args, **kwargs))
        raise KeyboardInterrupt

    run_case = report.run_case
    monkeypatch.setattr(report, "run_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench("--shape", "16,10,3", *QUICK, "--out", str(tmp_path))
    results = load(tmp_path)
    assert not results["complete"]
    assert len(results["records"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert bench("render", str(tmp_path)) == 0
    assert "Cut short" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_stored_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture):
    before = write(tmp_path / "a", simple({"eager": 1e-4, "fused-auto": 1e-4}))
    after = write(tmp_path / "b", simple({"eager": 1e-4, "fused-auto": 2e-4}))
    assert bench("compare", str(before), str(before)) == 0
    assert bench("compare", str(before), str(after)) == 1
    assert bench("compare", str(before), str(tmp_path)) == 2
    assert main(["bench", "compare", str(before), str(after), "--threshold", "3"]) == 0
    assert main(["bench", "compare", "--help"]) == 0
    assert "threshold" in capsys.readouterr().out


def test_an_action_that_there_is_not_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as exit_info:
        bench("smoke")
    assert exit_info.value.code == 2
    assert "compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shape", "512,1000"), "N,C,D"),
        (("--providers", "nobody"), "there are eager"),
        (("--dtype", "float16"), "goes with --shape"),
        (("--device", "tpu"), "cpu or cuda"),
        (("--suite", "gpu"), "no CUDA device"),
        (("--suite", "onnx", "--device", "cuda"), "runs on the CPU"),
        (("--suite", "onnx", "--providers", "liger"), "there are eager, compile, aot"),
        (("--suite", "onnx", "--phases", "forward"), "none that is measured here: inference on"),
    ],
)
def test_arguments_that_make_no_sense(
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench(*words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--seconds", "0"), ("--seconds", "nan")])
def test_no_time_at_all_is_refused(words: tuple[str, ...]):
    with pytest.raises(SystemExit) as exit_info:
        bench(*words)
    assert exit_info.value.code == 2


def test_the_command_repeats_the_run():
    parser = argparse.ArgumentParser()
    report.configure(parser)
    words = [
        "--shape",
        "4,3,2",
        "--dtype",
        "float16",
        "--providers",
        "eager,copy",
        "--seconds",
        "0.5",
    ]
    args = parser.parse_args(words)
    again = parser.parse_args(report.command(args).split()[2:])
    assert vars(again) == vars(args)


def test_pytest_benchmark_runs_over_the_registry(tmp_path: Path):
    out = tmp_path / "benchmark.json"
    words = ["bench", "-k", "tutorial and not compile", "-q", "-p", "no:cacheprovider"]
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", f"--benchmark-json={out}"]
    # pytest-benchmark does not measure in a worker of pytest-xdist, as this test may be
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = [sys.executable, "-m", "pytest", *words, *quick]
    subprocess.run(words, check=True, cwd=ROOT, env=alone)
    found = json.loads(out.read_text())["benchmarks"]
    groups = {f"tutorial-100x2 {phase.value}" for phase in LOSS_PHASES}
    assert {entry["group"] for entry in found} == groups
    tutorial = SUITES["smoke"][0]
    for entry in found:
        phase = Phase(entry["group"].removeprefix("tutorial-100x2 "))
        assert entry["extra_info"]["bytes_moved"] == tutorial.bytes_moved(phase)
