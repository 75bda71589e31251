import pytest

from fused_loss.export.diagnose import hint
from fused_loss.export.report import Comparison

HEADS, LEVELS, SIZES = ("regression", "classification"), ("DISABLE_ALL", "ENABLE_ALL"), (0, 1, 2, 7)


def comparisons(fails, problem="max error 5.0e-01 > 1.0e-06", error=0.5):
    """Every head, level and size; `fails(head, level, size)` names the bad ones."""
    return [
        Comparison(
            head,
            size,
            level,
            size,
            error=error,
            scale=1.0,
            passed=not fails(head, level, size),
            problem=problem if fails(head, level, size) else "",
        )
        for head in HEADS
        for level in LEVELS
        for size in SIZES
    ]


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (lambda head, level, size: False, ""),
        (lambda head, level, size: size == 0, "only the empty batch fails: leave 0 out"),
        (lambda head, level, size: size in (1, 2), "batch 1, 2 fails and 7 passes: does forward"),
        (lambda head, level, size: size > 0 and level == "ENABLE_ALL", "only ENABLE_ALL fails"),
        (lambda head, level, size: size > 0 and head == "regression", "only regression differs"),
        (lambda head, level, size: size > 0, "both outputs differ at every batch size"),
    ],
)
def test_the_pattern_of_failures_names_what_to_look_at(fails, said):
    found = hint(comparisons(fails))
    assert found.startswith(said)
    assert bool(found) is bool(said)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("the model itself fails: shapes", "is this the model that the file was made from?"),
        ("the model itself fails: the outputs of two runs differ", ""),
        ("2 NaN and 0 inf from onnxruntime", "does the model overflow, or hold NaN?"),
    ],
)
def test_some_problems_say_it_themselves(problem, said):
    assert hint(comparisons(lambda *where: True, problem)) == said


def test_a_relative_error_of_1e_8_is_that_of_a_number_kept_in_float32():
    assert "Python numbers in float32" in hint(comparisons(lambda *where: True, error=1e-8))
