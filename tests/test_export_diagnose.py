import numpy as np
import pytest

from fused_loss.export.diagnose import Pattern, hint, joint, pattern
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


def test_inputs_that_are_not_finite_are_named_before_the_model():
    made = comparisons(lambda *where: True, "PyTorch gives no finite value to compare with")
    assert hint(made, unfit="example").startswith("the rows of example hold NaN or inf themselves")
    assert "rows of" not in hint(comparisons(lambda *where: True), unfit="example")


def test_a_relative_error_of_1e_8_is_that_of_a_number_kept_in_float32():
    assert "Python numbers in float32" in hint(comparisons(lambda *where: True, error=1e-8))


R = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
C = np.array([[10.0, -2.0], [0.3, 4.5], [7.0, 0.1]])


@pytest.mark.parametrize(
    ("found", "exchanged", "shifted"),
    [
        ((R, C), False, True),  # nothing is wrong
        ((C, R), True, False),
        ((R, C + np.array([[1.0, -2.0]])), False, True),
        ((R, C + 1e-7 * R), False, True),  # rounding
        ((R * 1.1, C), False, False),
        ((R, C * np.nan), False, False),
        ((R[:, :1], C), False, False),
    ],
)
def test_what_the_values_of_a_failed_case_look_like(found, exchanged, shifted):
    assert pattern([found], [(R, C)]) == Pattern(exchanged, shifted)


def test_one_row_shows_no_shift_and_all_cases_must_show_the_same():
    one = pattern([(R[:1], C[:1] + 1.0)], [(R[:1], C[:1])])
    assert not one.shifted
    assert joint([Pattern(True, True), Pattern(True, False)]) == Pattern(True, False)
    assert joint([]) == Pattern()


def test_a_pattern_is_told_before_what_the_sizes_tell():
    failing = comparisons(lambda head, level, size: size > 0)
    assert "the heads are exchanged" in hint(failing, Pattern(exchanged=True))
    assert "the error is the same in every row" in hint(failing, Pattern(shifted=True))
