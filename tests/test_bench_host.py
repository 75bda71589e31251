from itertools import count

import pytest

from fused_loss.bench import host


@pytest.mark.parametrize("shape", host.SHAPES)
def test_every_part_launches_what_it_would(shape, monkeypatch):
    launched = []
    monkeypatch.setattr(host, "_no_launch", lambda call, arguments: launched.append(call.kernel))
    with host.no_launches():
        for name, part in host.parts(*host.SHAPES[shape]).items():
            launched.clear()
            part()
            assert len(launched) == (2 if name == "step" else 1), name


def test_a_figure_is_the_median_without_the_first_round(monkeypatch):
    """Rounds of 9, 1, 2 and 6 seconds, of two calls each."""
    clock = iter([0, 9, 10, 11, 12, 14, 20, 26])
    monkeypatch.setattr(host.time, "thread_time", lambda: next(clock))
    calls = count()
    assert host.microseconds(lambda: next(calls), rounds=3, calls=2) == 1e6
    assert next(calls) == 8


def test_the_command(capsys):
    assert host.main(["--rounds", "1", "--calls", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(" us") for line in lines)
