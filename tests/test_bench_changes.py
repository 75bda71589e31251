from collections.abc import Callable
from dataclasses import replace

import pytest
from _bench_results import BOARD, JITTER, TUTORIAL, record, results, simple, timed, untimed

from fused_loss.bench.cases import Phase
from fused_loss.bench.changes import compare
from fused_loss.bench.stored import ResultsError

BASE = {"eager": 1e-4, "compile": 2e-4, "fused-eager": 3e-4, "copy": 1e-5}
EVEN = (1.0, 1.0, 1.0, 1.0, 1.0)


def one(ours: float, jitter: tuple[float, ...] = JITTER, **others: float) -> dict:
    rows = [timed("eager", 1e-4, EVEN), timed("fused-eager", ours, jitter)]
    rows += [timed(name, median) for name, median in others.items()]
    return results([record(TUTORIAL, Phase.FORWARD, rows)])


def changed(scale: float, only: Callable[[str], bool] = lambda name: True) -> dict:
    return simple({n: median * (scale if only(n) else 1) for n, median in BASE.items()})


def test_a_run_has_not_changed_against_itself():
    made = simple(BASE, (TUTORIAL, BOARD))
    found = compare(made, made)
    # ours and compile in four phases of two cases; floors and eager itself are left out
    assert (found.slower, found.faster, found.unchanged) == ([], [], 16)
    assert not found.regressions


def test_a_slower_machine_is_no_slower_provider():
    assert not compare(simple(BASE), changed(3.0)).slower


def test_a_build_slowed_by_half_is_found_in_every_phase():
    found = compare(simple(BASE), changed(1.5, lambda name: name.startswith("fused-")))
    assert [change.factor for change in found.slower] == pytest.approx([1.5] * 4)
    assert {key.phase for key in found.regressions} == {phase.value for phase in Phase}
    assert {key.provider for key in found.regressions} == {"fused-eager"}
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


def test_the_unit_may_be_another_provider():
    before, after = one(1e-4, copy=1e-5), one(1e-4, copy=5e-6)
    assert not compare(before, after).slower
    found = compare(before, after, to="copy")
    assert {change.key.provider for change in found.slower} == {"eager", "fused-eager"}
    assert [change.factor for change in found.slower] == pytest.approx([2, 2])


def test_without_the_unit_beside_it_a_time_is_not_compared():
    before, after = one(1e-4, copy=1e-5), one(1e-4)
    both = record(BOARD, Phase.FORWARD, [timed("eager", 1e-4), timed("copy", 1e-5)])
    for made in (before, after):
        made["records"] += results([both])["records"]
    found = compare(before, after, to="copy")
    assert (found.unchanged, found.without_base) == (1, 2)


def test_a_case_of_the_same_name_and_another_definition_is_another():
    other = replace(TUTORIAL, ignored=0.5)
    before = simple(BASE, (TUTORIAL, BOARD))
    found = compare(before, simple(BASE, (other, BOARD)))
    assert found.unchanged == 8
    assert {key.case for keys in found.only_in for key in keys} == {TUTORIAL.name}
    assert len(found.only_in[0]) == len(found.only_in[1]) == 16
    # what follows from the definition does not make it another
    before["records"][0]["case"]["flops"] = {}
    assert not any(compare(before, simple(BASE, (TUTORIAL, BOARD))).only_in)


@pytest.mark.parametrize(
    ("status", "broken"), [("wrong", True), ("failed", True), ("unsupported", False)]
)
def test_ours_that_no_longer_works_is_a_regression(status: str, broken: bool):
    rows = [timed("eager", 1e-4), untimed("fused-eager", status, "loss: off")]
    rows += [timed("compile", 1e-4)]
    after = results([record(TUTORIAL, Phase.FORWARD, rows)])
    found = compare(one(1e-4, compile=1e-4), after)
    assert [why for _, why in found.broken] == [f"{status}: loss: off"] * broken
    assert len(found.regressions) == broken
    assert [key.provider for key in found.only_in[0]] == ["fused-eager"]
    assert not found.only_in[1]


def test_nothing_in_common_is_an_error():
    with pytest.raises(ResultsError, match="share no case"):
        compare(simple(BASE, (TUTORIAL,)), simple(BASE, (BOARD,)))
    with pytest.raises(ResultsError, match="beside 'nobody'"):
        compare(simple(BASE), simple(BASE), to="nobody")
