import dataclasses
import json
import math

from fused_loss.export.report import Comparison, VerificationReport

GOOD = Comparison("r", 7, "ENABLE_ALL", 8, 1e-7, 1e-5, 5e-8, 2.0, passed=True)
WORSE = dataclasses.replace(GOOD, batch=1, error=4e-6)
BAD = dataclasses.replace(GOOD, error=0.5, passed=False, problem="max error 5.0e-01 > 1.0e-05")
REPORT = VerificationReport(
    file="m.onnx",
    sha256="00ff",
    opset=20,
    ir_version=10,
    inputs={"input": ["batch", 4]},
    outputs={"r": ["batch", 1]},
    versions={"torch": "2"},
    seed=0,
    source="example",
    comparisons=(GOOD, WORSE),
)


def test_it_passes_only_if_something_was_compared_and_all_agrees():
    assert REPORT.passed
    assert not dataclasses.replace(REPORT, comparisons=()).passed
    assert not dataclasses.replace(REPORT, comparisons=(GOOD, BAD)).passed
    assert not dataclasses.replace(REPORT, problems=("damaged",)).passed


def test_the_summary_shows_what_is_nearest_to_its_bound():
    assert REPORT.summary().splitlines() == [
        "m.onnx: opset 20, IR 10, sha256 00ff",
        "r: max error 4.0e-06 of 1.0e-05 allowed (batch 1, ENABLE_ALL)",
    ]


def test_a_failure_shows_the_problems_first_then_four_in_all_and_the_hint():
    report = dataclasses.replace(
        REPORT, problems=("damaged",), comparisons=(GOOD, *[BAD] * 5), hint="look here"
    )
    line = "r: max error 5.0e-01 > 1.0e-05 (batch 7, ENABLE_ALL)"
    shown = ["m.onnx is refused:", "damaged", line, line, line]
    assert report.failures == (BAD,) * 5
    assert report.failure().splitlines() == [*shown, "and 2 more, all in the report", "look here"]
    assert report.summary() == report.failure()


def test_it_is_standard_json_with_what_is_not_finite_as_text():
    bad = dataclasses.replace(BAD, error=math.inf, allowed=math.nan)
    read = json.loads(dataclasses.replace(REPORT, comparisons=(GOOD, bad)).to_json())
    assert read["passed"] is False
    assert read["inputs"] == {"input": ["batch", 4]}
    assert [c["error"] for c in read["comparisons"]] == [1e-7, "inf"]
    assert read["comparisons"][1]["allowed"] == "nan"
    assert read["comparisons"][0]["scale"] == 2.0


def test_an_empty_batch_alone_has_no_error_to_show():
    empty = Comparison("r", 0, "ENABLE_ALL", 0, passed=True)
    assert len(dataclasses.replace(REPORT, comparisons=(empty,)).summary().splitlines()) == 1
