import re

import missing
import penguins_missing as example
import pytest
import torch
from _examples import assert_trains_alike, double, rounding

from fused_loss import backend


@pytest.fixture(scope="module")
def birds() -> missing.Batch:
    return example.load()


def test_no_bird_is_dropped(birds: missing.Batch):
    assert [tuple(t.shape) for t in birds] == [(344, 9), (344, 1), (344,)]
    assert birds.x.isfinite().all()
    assert birds.y.isnan().sum() == 2
    assert (birds.t == missing.MISSING).sum() == 11
    assert torch.equal(birds.t.unique(), torch.tensor([missing.MISSING, 0, 1]))
    # The two that were not weighed were not measured either: they count as the mean.
    assert (birds.x[birds.y[:, 0].isnan(), :3] == 0).all()


def test_only_birds_with_both_labels_are_held_out(birds: missing.Batch):
    learned, held_out = example.split(birds, seed=1)
    assert len(held_out.t) == example.HELD_OUT
    assert len(learned.t) + len(held_out.t) == 344
    assert held_out.y.isfinite().all()
    assert (held_out.t >= 0).all()
    assert not torch.equal(example.split(birds, seed=2)[1].x, held_out.x)


def test_every_second_epoch_has_batches_without_a_label_of_a_head(birds: missing.Batch):
    parts = example.batches(birds, epochs=2, seed=0)
    assert sum(len(part.t) for part in parts) == 2 * 344
    assert sum(bool(part.y.isnan().all()) for part in parts) == 1
    assert sum(bool((part.t == missing.MISSING).all()) for part in parts) == 2


@pytest.mark.parametrize("name", ["eager", "reference"])
def test_it_trains_as_the_gathered_rows_do(birds: missing.Batch, name: str):
    learned, held_out = example.split(birds, seed=0)
    parts = example.batches(learned, epochs=4, seed=0)
    with backend(name):
        ours, theirs = assert_trains_alike(
            lambda: missing.make_model(0, 9, 2),
            lambda model, batches: missing.train(model, batches, missing.fused, example.RATE),
            lambda model, batches: missing.train(model, batches, missing.gathered, example.RATE),
            parts,
        )
    held_out = double(held_out)
    scores, usual = missing.score(ours, held_out), missing.score(theirs, held_out)
    assert scores.accuracy == usual.accuracy > 0.6
    assert scores == pytest.approx(usual, rel=rounding(len(parts)))


def test_it_prints_what_came_out(capsys: pytest.CaptureFixture[str]):
    example.main(epochs=2)
    said = capsys.readouterr().out
    assert "66 rows held out" in said
    assert "batches without any number: 1, without any class: 2" in said
    (scores,) = re.findall(r"accuracy\W+([\d.]+)\W+([\d.]+)", said)
    assert scores[0] == scores[1]
    apart = [float(number) for number in re.findall(r"\d\.\de[+-]\d\d", said)]
    assert len(apart) == 3
