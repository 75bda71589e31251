from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _bench_results import (
    BOARD,
    COMMITTED,
    JITTER,
    TUTORIAL,
    record,
    results,
    simple,
    timed,
    untimed,
)

from fused_loss.bench.cases import LOSS_PHASES, Phase
from fused_loss.bench.changes import THRESHOLD, compare
from fused_loss.bench.stored import OURS, ResultsError, load

BASE = {"eager": 1e-4, "compile": 2e-4, "fused-auto": 3e-4, "copy": 1e-5}
EVEN = (1.0, 1.0, 1.0, 1.0, 1.0)


def one(ours: float, jitter: tuple[float, ...] = JITTER, **others: float) -> dict:
    rows = [timed("eager", 1e-4, EVEN), timed("fused-auto", ours, jitter)]
    rows += [timed(name, median) for name, median in others.items()]
    return results([record(TUTORIAL, Phase.FORWARD, rows)])


def changed(scale: float, only: Callable[[str], bool] = lambda name: True) -> dict:
    return simple({n: median * (scale if only(n) else 1) for n, median in BASE.items()})


def test_a_run_has_not_changed_against_itself():
    made = simple(BASE, (TUTORIAL, BOARD))
    found = compare(made, made)
    # ours, compile and eager in four phases of two cases; floors are left out
    assert (found.slower, found.faster, found.unchanged) == ([], [], 24)
    assert not found.regressions


def test_a_slower_machine_is_no_slower_provider():
    assert not compare(simple(BASE), changed(3.0)).slower


def test_a_build_slowed_by_half_is_found_in_every_phase():
    found = compare(simple(BASE), changed(1.5, lambda name: name.startswith("fused-")))
    assert [change.factor for change in found.slower] == pytest.approx([1.5] * 4)
    assert {key.phase for key in found.regressions} == {phase.value for phase in LOSS_PHASES}
    assert {key.provider for key in found.regressions} == {"fused-auto"}
    back = compare(changed(1.5, lambda name: name.startswith("fused-")), simple(BASE))
    assert not back.regressions
    assert [change.factor for change in back.faster] == pytest.approx([1 / 1.5] * 4)


def test_a_peer_that_slowed_is_listed_and_is_no_regression():
    found = compare(simple(BASE), changed(2.0, lambda name: name == "compile"))
    assert {change.key.provider for change in found.slower} == {"compile"}
    assert not found.regressions


@pytest.mark.parametrize(
    ("after", "jitter", "threshold", "slower"),
    [
        (1.3e-4, EVEN, 1.1, True),
        (1.3e-4, EVEN, 1.5, False),  # within the threshold
        (1.3e-4, (0.7, 0.75, 1.0, 1.1, 1.2), 1.1, False),  # beyond it, within the spread
        (1.11e-4, EVEN, 1.1, True),
        (1.09e-4, EVEN, 1.1, False),
        (1.21e-4, EVEN, THRESHOLD, True),
        (1.19e-4, EVEN, THRESHOLD, False),
    ],
)
def test_both_conditions_are_needed(
    after: float, jitter: tuple[float, ...], threshold: float, slower: bool
):
    found = compare(one(1e-4, EVEN), one(after, jitter), threshold)
    assert bool(found.slower) == slower
    assert found.unchanged == (not slower)


def test_the_spread_of_the_first_run_counts_too():
    wide = (0.7, 0.75, 1.0, 1.3, 1.6)
    assert not compare(one(1e-4, wide), one(1.3e-4, EVEN)).slower
    assert not compare(one(1.3e-4, EVEN), one(1e-4, wide)).faster


def test_a_change_must_show_in_every_unit():
    before, after = one(1e-4, copy=1e-5), one(1e-4, copy=5e-6)
    assert not compare(before, after).regressions  # the copy alone has changed
    (change,) = compare(before, one(2e-4, copy=1.2e-5)).slower
    assert (change.key.provider, change.unit) == ("fused-auto", "copy")  # the least: 2 / 1.2
    assert change.factor == pytest.approx(2 / 1.2)
    (change,) = compare(before, one(5e-5, copy=8e-6)).faster
    assert (change.unit, change.factor) == ("copy", pytest.approx(0.5 / 0.8))


def test_eager_disturbed_in_one_run_is_no_regression_of_ours():
    rows = [timed("eager", 1e-4, EVEN), timed("copy", 1e-5), timed("fused-auto", 1e-4, EVEN)]
    before, after = (results([record(TUTORIAL, Phase.FORWARD, rows)]) for _ in range(2))
    eager = before["records"][0]["providers"][0]
    eager["median_s"] *= 1.5
    eager["samples_s"] = [1.5 * sample for sample in eager["samples_s"]]
    assert not compare(before, after).regressions
    assert compare(before, after, to="eager").regressions  # which is why one unit does not do


def test_the_unit_may_be_one_provider_alone():
    before, after = one(1e-4, copy=1e-5), one(1e-4, copy=5e-6)
    found = compare(before, after, to="copy")
    assert {change.key.provider for change in found.slower} == {"eager", "fused-auto"}
    assert [change.factor for change in found.slower] == pytest.approx([2, 2])


@pytest.mark.parametrize("which", [0, 1])
def test_what_was_crowded_in_either_run_is_not_judged(which: int):
    runs = simple(BASE, (TUTORIAL, BOARD)), changed(1.5, lambda name: name.startswith("fused-"))
    runs[1]["records"] += simple(BASE, (BOARD,))["records"]
    runs[which]["records"][0]["crowded"] = True
    found = compare(*runs)
    assert len(found.regressions) == 3
    assert found.crowded == 3  # ours, compile and eager
    for entry in runs[which]["records"]:
        entry["crowded"] = True
    with pytest.raises(ResultsError, match="24 measurements in common were crowded"):
        compare(*runs)


def noisy(scale: float, seed: int) -> dict:
    """A run of 100 cases on a restless machine: rounds differ by a tenth and now and then by three
    times, and what a provider takes in a run by a twentieth. Ours is slowed by `scale`.
    """
    rng = np.random.default_rng(seed)
    records = []
    for number in range(100):
        rows = []
        for name, median in BASE.items():
            own = median * np.exp(rng.normal(0, 0.05)) * (scale if name.startswith(OURS) else 1)
            rounds = np.exp(rng.normal(0, 0.1, 21)) * np.where(rng.random(21) < 0.05, 3, 1)
            rows.append(timed(name, own, list(rounds)))
        rng.shuffle(rows)
        records.append(record(replace(TUTORIAL, name=f"case-{number}"), Phase.FORWARD, rows))
    return results(records)


def test_over_many_comparisons_there_is_no_false_alarm_and_what_is_slower_is_found():
    before = noisy(1, seed=0)
    assert not compare(before, noisy(1, seed=1)).regressions
    found = compare(before, noisy(1.5, seed=2))
    assert len(found.regressions) > 10


def test_without_the_unit_beside_it_a_time_is_not_compared():
    before, after = one(1e-4, copy=1e-5), one(1e-4)
    both = record(BOARD, Phase.FORWARD, [timed("eager", 1e-4), timed("copy", 1e-5)])
    for made in (before, after):
        made["records"] += results([both])["records"]
    found = compare(before, after, to="copy")
    assert (found.unchanged, found.without_unit) == (1, 1)


def test_a_case_of_the_same_name_and_another_definition_is_another():
    other = replace(TUTORIAL, ignored=0.5)
    before = simple(BASE, (TUTORIAL, BOARD))
    found = compare(before, simple(BASE, (other, BOARD)))
    assert found.unchanged == 12
    assert {key.case for keys in found.only_in for key in keys} == {TUTORIAL.name}
    assert len(found.only_in[0]) == len(found.only_in[1]) == 16
    # what follows from the definition does not make it another
    before["records"][0]["case"]["flops"] = {}
    assert not any(compare(before, simple(BASE, (TUTORIAL, BOARD))).only_in)


@pytest.mark.parametrize(
    ("status", "broken"), [("wrong", True), ("failed", True), ("unsupported", False)]
)
def test_ours_that_no_longer_works_is_a_regression(status: str, broken: bool):
    rows = [timed("eager", 1e-4), untimed("fused-auto", status, "loss: off")]
    rows += [timed("compile", 1e-4)]
    after = results([record(TUTORIAL, Phase.FORWARD, rows)])
    found = compare(one(1e-4, compile=1e-4), after)
    assert [why for _, why in found.broken] == [f"{status}: loss: off"] * broken
    assert len(found.regressions) == broken
    assert [key.provider for key in found.only_in[0]] == ["fused-auto"]
    assert not found.only_in[1]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_a_committed_run_slowed_by_half_is_found(path: Path):
    before, after = load(path), load(path)
    assert not compare(before, after).regressions
    for row in (row for entry in after["records"] for row in entry["providers"]):
        if row["name"].startswith(OURS) and row.get("median_s"):
            row["median_s"] *= 1.5
            row["samples_s"] = [1.5 * sample for sample in row["samples_s"]]
    assert compare(before, after).regressions


def test_nothing_in_common_is_an_error():
    with pytest.raises(ResultsError, match="share no case"):
        compare(simple(BASE, (TUTORIAL,)), simple(BASE, (BOARD,)))
    with pytest.raises(ResultsError, match="beside 'nobody'"):
        compare(simple(BASE), simple(BASE), to="nobody")
