import re

import pytest
from _bench_results import BOARD, TUTORIAL, inference, record, results, simple, timed, untimed

from fused_loss.bench.cases import Phase
from fused_loss.bench.markdown import report


def section(text: str, heading: str) -> str:
    return re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_head_repeats_the_file():
    made = simple({"eager": 1e-4}, command="fused-loss bench --shape 4,3,2 --seconds 1")
    text = report(made)
    assert "fused-loss bench --shape 4,3,2 --seconds 1" in text
    for fact in (
        "| hardware | Example CPU, 2 cores |",
        "| CPU threads | 2 |",
        "| versions | fused-loss 0.1.0, torch 2.13.0, Python 3.11.7 |",
        "| commit | 0123456789abcdef |",
        "| date | 2026-01-02 03:04 UTC |",
    ):
        assert fact in text
    assert "triton None" not in text


def test_the_cells_are_the_files_figures():
    copied = [timed("eager", 1e-4), timed("fused-auto", 2e-4), timed("copy", 1e-5)]
    text = report(results([record(TUTORIAL, Phase.TRAINING, copied)]))
    head, _, eager, fused, copy = rows(section(text, "Forward+backward"))
    assert head == [
        *("case", "provider", "time", "spread", "time ÷ eager's", "time ÷ copy's", "GB/s"),
        *("memory", "operators", "first call"),
    ]
    assert "below 1 is faster" in " ".join(text.split())
    # 1200 bytes held, 800 of logits; 3600 bytes moved; deciles 0.968 and 1.032 of the median
    cells = "1.50", "40", "250 ms"
    assert eager == [
        *("**tutorial-100x2**", "eager", "100 µs", "6%", "1.00×", "10.0×", "0.036", *cells)
    ]
    assert fused == ["", "fused-auto", "200 µs", "6%", "2.00×", "20.0×", "0.018", *cells]
    assert copy == ["", "copy", "10.0 µs", "6%", "0.10×", "1.00×", "0.36", *cells]


def test_a_step_has_the_losss_share_instead_of_bandwidth():
    step = [timed("eager", 2e-4), timed("fused-auto", 4e-4), timed("model-alone", 1e-4)]
    text = report(results([record(TUTORIAL, Phase.STEP, step)]))
    head, _, eager, fused, _ = rows(section(text, "Training step"))
    assert "GB/s" not in head
    place = head.index("loss share")
    assert (eager[place], fused[place]) == ("50%", "75%")


def test_inference_has_rows_and_operations_a_second():
    made = inference({"eager": 1e-4, "onnx": 5e-5})
    text = report(made, ["inference.png"])
    for phase in ("1 thread", "2 threads"):
        head, _, eager, onnx = rows(section(text, f"Inference on {phase}"))
        assert head == [
            *("case", "provider", "time", "spread", "time ÷ eager's"),
            *("rows/s", "GFLOP/s", "first call"),
        ]
        # 64 rows of 2·85504 operations
        assert eager[:2] == ["**mlp-256-batch-64**", "eager"]
        assert eager[2:] == ["100 µs", "6%", "1.00×", "640,000", "109", "250 ms"]
        assert onnx[1:] == ["onnx", "50.0 µs", "6%", "0.50×", "1,280,000", "219", "250 ms"]
    assert "onnxruntime without and with its optimisations" in text
    assert "units of the logits" not in text
    assert "](inference.png)" in text
    assert "onnxruntime" not in report(simple({"eager": 1e-4}))


def test_a_gpu_has_two_times_and_its_launches():
    made = [timed("eager", 1e-4, gpu=True), timed("fused-triton", 5e-5, gpu=True)]
    text = report(results([record(TUTORIAL, Phase.FORWARD, made)], gpu=True))
    head, _, eager, _ = rows(section(text, "Forward"))
    cells = dict(zip(head, eager, strict=True))
    assert (cells["GPU time"], cells["wall time"]) == ("100 µs", "103 µs")
    assert cells["operators / launches / syncs"] == "40 / 3 / 1"
    assert "unmeasured" not in text


def test_without_a_time_a_provider_has_a_reason_and_no_figure():
    made = [
        timed("eager", 1e-4),
        untimed("compile", "failed", "RuntimeError: a | b"),
        untimed("fused-auto", "wrong", "loss: norm error 1.0e-02 > 1.0e-06"),
    ]
    records = [record(c, p, made) for c in (TUTORIAL, BOARD) for p in (Phase.FORWARD, Phase.SCALED)]
    text = report(results(records))
    wrong = next(row for row in rows(section(text, "Forward")) if "fused-auto" in row)
    assert wrong[2:] == ["**wrong**", *"–" * 7]
    reasons = section(text, "Without a time").strip().splitlines()
    where = "On tutorial-100x2 (forward, scaled forward+backward); board-8x65 (forward, scaled"
    assert len(reasons) == 2
    assert reasons[0].startswith("- **failed** `compile`: RuntimeError: a \\| b. " + where)
    assert reasons[1].startswith("- **wrong** `fused-auto`: loss: norm error")


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("the GPU is unmeasured", {}),
        ("**Cut short**: the run ended after 4 measurements", {"complete": False}),
        ("- `liger`: not installed: pip install liger-kernel", {}),
        ("commit | unknown", {"environment": {"commit": None}}),
    ],
)
def test_what_is_missing_is_said(words: str, change: dict):
    made = simple({"eager": 1e-4})
    environment = made["environment"] | change.get("environment", {})
    assert words in report(made | change | {"environment": environment})


def test_a_crowded_measurement_is_marked_where_it_stands():
    made = simple({"eager": 1e-4})
    made["records"][0] |= {"crowded": True, "other_processes_cores": 1.5}
    text = report(made)
    assert "**tutorial-100x2** (crowded)" in section(text, "Forward")
    assert "(crowded)" not in section(text, "Forward+backward")
    assert "in 1 of 4 measurements" in text


def test_plots_are_shown_only_where_they_are():
    made = simple({"eager": 1e-4})
    assert "](speedup.png)" in report(made, ["speedup.png"])
    assert ".png" not in report(made)


def test_nothing_measured_is_a_report_too():
    text = report(results([], complete=False, absent={}))
    assert "ended after 0 measurements" in text
    assert "Nothing was compared" in text
