import json
import statistics
from pathlib import Path

import pytest
from _bench_results import TUTORIAL, record, results, simple, timed, untimed, write

from fused_loss.bench.cases import LOSS_PHASES, Phase
from fused_loss.bench.stored import SCHEMA, Ratio, ResultsError, load, ours, phases, ratio


def test_a_file_is_read_by_its_path_or_its_folder(tmp_path: Path):
    made = simple({"eager": 1e-4})
    path = write(tmp_path, made)
    assert load(path) == load(tmp_path) == made
    assert phases(made) == [phase.value for phase in LOSS_PHASES]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[]", "has no schema"),
        ("{}", "has no schema"),
        ('{"schema": 1, "command": "fused-loss bench --shape 4,3,2"}', r"schema 1.*--shape 4,3,2"),
        (json.dumps({"schema": SCHEMA, "complete": True}), "damaged: it has no command"),
        (json.dumps(simple({"eager": 1.0}) | {"records": [{"phase": "x"}]}), "no case in record 0"),
    ],
)
def test_what_is_no_results_file_is_named(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultsError, match=message):
        load(path)


def test_a_ratio_pairs_the_samples_of_a_round():
    drift = (1.0, 2.0, 1.0, 4.0, 1.0)  # of the machine, common to both
    wobble = (1.0, 1.1, 0.9, 1.05, 1.0)
    one = timed("fused-auto", 3e-4, [d * w for d, w in zip(drift, wobble, strict=True)])
    two = timed("eager", 1e-4, drift)
    made = results([record(TUTORIAL, Phase.FORWARD, [one, two])])
    mine, its = made["records"][0]["providers"]
    found = ratio(mine, its)
    assert found.value == mine["median_s"] / its["median_s"]
    # deciles of the quotients 3 × wobble: a tenth of the way between the outer two of five
    assert found.low == pytest.approx(3 * (0.9 + 0.4 * 0.1), rel=1e-3)
    assert found.high == pytest.approx(3 * (1.1 - 0.4 * 0.05), rel=1e-3)
    # without pairing the machine's drift would have drowned it
    assert statistics.quantiles(its["samples_s"], n=10, method="inclusive")[-1] > 3e-4


def test_one_round_is_its_own_spread():
    rows = [timed("fused-auto", 2e-4, [1.0]), timed("eager", 1e-4, [1.0])]
    mine, its = results([record(TUTORIAL, Phase.FORWARD, rows)])["records"][0]["providers"]
    assert ratio(mine, its) == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("found", "above", "unclear"),
    [
        (Ratio(1.5, 1.2, 1.8), True, False),
        (Ratio(1.5, 0.9, 1.8), False, True),
        (Ratio(0.5, 0.4, 0.9), False, False),
        (Ratio(0.5, 0.4, 1.1), False, True),
    ],
)
def test_beyond_the_spread(found: Ratio, above: bool, unclear: bool):
    assert (found.above_one, found.unclear) == (above, unclear)
    assert found.inverse.inverse == pytest.approx(found)


def test_ours_is_the_fastest_that_has_a_time_and_graphs_are_apart():
    rows = [
        timed("eager", 1e-4),
        timed("fused-auto", 3e-4),
        timed("fused-triton", 2e-4),
        timed("fused-triton-graph", 1e-5),
    ]
    (made,) = results([record(TUTORIAL, Phase.FORWARD, rows)])["records"]
    assert ours(made)["name"] == "fused-triton"
    assert ours(made, graph=True)["name"] == "fused-triton-graph"
    rows = [timed("eager", 1e-4), untimed("fused-auto", "wrong", "loss: off")]
    (made,) = results([record(TUTORIAL, Phase.FORWARD, rows)])["records"]
    assert ours(made) is None
