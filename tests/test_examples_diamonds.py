import diamonds as example
import missing
import pytest
import torch
from _examples import assert_trains_alike, double, rounding

from fused_loss import backend


@pytest.fixture(scope="module")
def stones() -> missing.Batch:
    return example.load()


def test_the_whole_table_is_there(stones: missing.Batch):
    assert [tuple(t.shape) for t in stones] == [(53940, 21), (53940, 1), (53940,)]
    assert stones.x.isfinite().all()
    assert stones.y.isfinite().all()
    assert stones.t.bincount().tolist() == [1610, 4906, 12082, 13791, 21551]  # Fair to Ideal
    assert (stones.x[:, 6:].sum(1) == 2).all()  # one colour, one clarity
    # A dearer stone is a heavier one.
    assert torch.corrcoef(torch.stack((stones.x[:, 0], stones.y[:, 0])))[0, 1] > 0.9


def test_half_of_the_labels_are_removed_and_some_lots_have_none(stones: missing.Batch):
    learned, held_out = example.split(stones, seed=0)
    assert len(held_out.t) == 10788
    fewer = example.remove_labels(learned, seed=0)
    known, named = ~fewer.y.isnan(), fewer.t != missing.MISSING
    assert torch.equal(fewer.y[known], learned.y[known])
    assert torch.equal(fewer.t[named], learned.t[named])
    n = len(fewer.t)
    # Half of nine tenths, and four standard deviations.
    margin = 4 * (0.25 * n) ** 0.5 + example.LOT / 2
    assert abs(known.sum() - 0.45 * n) < margin
    assert abs(named.sum() - 0.45 * n) < margin
    parts = example.batches(fewer, epochs=1, seed=0)
    assert sum(bool(part.y.isnan().all()) for part in parts) == 9
    assert sum(bool((part.t == missing.MISSING).all()) for part in parts) == 9
    assert sum(len(part.t) for part in parts) == n


def test_it_trains_as_the_gathered_rows_do(stones: missing.Batch):
    learned, held_out = example.split(stones, seed=0)
    parts = example.batches(example.remove_labels(learned, seed=0), epochs=1, seed=0)
    with backend("eager"):
        ours, theirs = assert_trains_alike(
            lambda: missing.make_model(0, 21, 5),
            lambda model, batches: missing.train(model, batches, missing.fused, example.RATE),
            lambda model, batches: missing.train(model, batches, missing.gathered, example.RATE),
            parts,
        )
    held_out = double(held_out)
    scores, usual = missing.score(ours, held_out), missing.score(theirs, held_out)
    assert scores.error < 0.5
    assert scores.accuracy == usual.accuracy > 0.4
    assert scores == pytest.approx(usual, rel=rounding(len(parts)))


def test_it_prints_what_came_out(capsys: pytest.CaptureFixture[str]):
    example.main(epochs=1)
    said = capsys.readouterr().out
    assert "85 steps, 10788 rows held out" in said
    assert "batches without any number: 9, without any class: 9" in said
