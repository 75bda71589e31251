import pytest

from fused_loss.bench.accuracy_table import kinds, markdown, outside, within


def row(loss: float, gradient: float, option: str = "defaults", backend: str = "eager") -> dict:
    return {
        "option": option,
        "dtype": "float32",
        "backend": backend,
        "ulps": {"loss": loss, "regression loss": 0.25, "z gradient": gradient, "r gradient": 0.5},
        "eager_ulps": {"loss": 0.75, "regression loss": 0.5, "z gradient": 1.5, "r gradient": 0.0},
    }


def results(*rows: dict) -> dict:
    return {
        "command": "fused-loss bench accuracy",
        "started": "2026-01-02T03:04:05+00:00",
        "environment": {
            "device": {"type": "cpu", "name": "A CPU", "cores": 2},
            "packages": {"torch": "2.13.0"},
            "cuda": None,
            "python": "3.11",
            "commit": "abc",
        },
        "absent": {},
        "interpreted": False,
        "rows": list(rows),
    }


@pytest.mark.parametrize(
    ("ours", "eager", "expected"),
    [(0.9, 0.1, False), (1.0, 0.1, False), (1.1, 0.1, True), (1.4, 1.5, False), (1.6, 1.5, True)],
)
def test_the_bound_is_pytorch_s_error_or_a_unit(ours: float, eager: float, expected: bool):
    assert outside(ours, eager) is expected


def test_the_worst_of_the_losses_and_of_the_gradients_counts():
    assert kinds(row(1.0, 1.25)) == [(1.0, 0.75), (1.25, 1.5)]
    assert within(row(1.0, 1.5))
    assert not within(row(1.01, 0.0))
    assert not within(row(0.0, 1.51))


def test_a_section_a_backend_and_a_line_an_option():
    text = markdown(results(row(1.0, 1.5), row(0.5, 2.0, "a|b"), row(3.0, 0.0, backend="triton")))
    assert "## eager\n\n| option | float32: losses | float32: gradients |" in text
    assert "| defaults | 1.00 (0.75) | 1.50 (1.50) |" in text
    assert "| a\\|b | 0.50 (0.75) | **2.00** (1.50) |" in text
    assert "## triton" in text
    assert "| defaults | **3.00** (0.75) | 0.50 (1.50) |" in text
    assert text.endswith("1 of 3 rows are within their bound.\n")
    assert "interpreter" not in text


def test_what_was_interpreted_or_absent_is_said():
    made = results(row(1.0, 1.0)) | {"interpreted": True, "absent": {"triton": "no GPU"}}
    assert "interpreter on a CPU" in markdown(made)
    assert "Not here: triton: no GPU." in markdown(made)
