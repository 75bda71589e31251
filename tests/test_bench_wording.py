import pytest
from _bench_results import CPU, TUTORIAL, record, results, timed

from fused_loss.bench.cases import Phase
from fused_loss.bench.wording import crowded, escape, machine, seconds, table, times, versions


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4.2e-8, "0.042 µs"),
        (1.234e-6, "1.23 µs"),
        (99.96e-6, "100 µs"),
        (999.4e-6, "999 µs"),
        (999.6e-6, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (1234.0, "1234 s"),
    ],
)
def test_seconds_in_three_digits(value: float, text: str):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0031, "0.0031×"), (0.5, "0.50×"), (12.34, "12.3×")]
)
def test_multiples(value: float | None, text: str):
    assert times(value) == text


def test_a_table_survives_its_cells():
    cell = escape("a|b\nc *d* `e` <f> [g]")
    assert table(("x", "y"), [(cell, "1")], "lr") == (
        "| x | y |\n| --- | --: |\n| a\\|b c \\*d\\* \\`e\\` \\<f> \\[g] | 1 |"
    )


def test_the_machine_and_its_versions():
    made = results([])
    assert machine(made) == "Example CPU, 2 cores"
    assert versions(made) == "fused-loss 0.1.0, torch 2.13.0, Python 3.11.7"
    made = results([], gpu=True)
    assert machine(made) == "Example GPU (80 GiB, driver 555.1), on Example CPU, 2 cores"
    assert versions(made).endswith(", CUDA 13.0")
    unknown = made["environment"]["device"] | {"driver": None, "host": CPU}
    made["environment"]["device"] = unknown
    assert "driver unknown" in machine(made)
    made["environment"]["device"]["host"] = CPU | {"vectors": "AVX2"}
    assert machine(made).endswith("on Example CPU, 2 cores, AVX2")


def test_a_crowd_is_counted():
    rows = [timed("eager", 1e-4)]
    quiet = record(TUTORIAL, Phase.FORWARD, rows)
    busy = quiet | {"crowded": True, "other_processes_cores": 1.25}
    assert crowded(results([quiet])) is None
    assert "in 1 of 2 measurements" in (text := crowded(results([quiet, busy])))
    assert "up to 1.2 of them" in text
