import numpy as np
import pytest
import torch

import fused_loss
from fused_loss.demo_data import Rows, load, split
from fused_loss.demo_model import PenguinModel, Scale, evaluate, score, train

NAN = float("nan")


@pytest.fixture(scope="module")
def rows():
    return load()


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("seed", range(5))
def test_five_seeds_reach_the_figures(rows, seed):
    _, history = train(*split(rows, seed), seed=seed)
    held_out = history[-1].held_out
    assert held_out.accuracy >= 0.95
    assert held_out.rmse <= 400


def test_a_seed_repeats_bit_for_bit_and_leaves_the_global_generator_alone(rows):
    parts = split(rows, 0)
    state = torch.random.get_rng_state()
    (first, history), (again, repeated), (other, _) = (
        train(*parts, seed=seed, epochs=2) for seed in (0, 0, 1)
    )
    assert torch.random.get_rng_state().equal(state)
    assert weights(first).equal(weights(again))
    assert history == repeated
    assert not weights(first).equal(weights(other))


def test_nothing_of_the_held_out_rows_reaches_the_model(rows):
    parts = split(rows, 0)
    birds = parts.held_out
    altered = Rows(birds.inputs * 7 + 1, birds.mass * 3, (birds.species + 1) % 3)
    model, history = train(parts.train, birds, epochs=2)
    blind, other = train(parts.train, altered, epochs=2)
    assert weights(model).equal(weights(blind))
    assert [epoch.train for epoch in history] == [epoch.train for epoch in other]
    assert [epoch.held_out for epoch in history] != [epoch.held_out for epoch in other]


def test_the_scales_are_those_of_the_training_rows(rows):
    parts = split(rows, 0)
    model, _ = train(*parts, epochs=1)
    for scale, part, everything in (
        (model.inputs, parts.train.inputs, rows.inputs),
        (model.mass, parts.train.mass, rows.mass),
    ):
        values = part.double().numpy()
        # One rounding a row is the bound of a sum in float32.
        rtol = len(values) * torch.finfo(torch.float32).eps
        np.testing.assert_allclose(scale.mean.numpy(), values.mean(0), rtol=rtol)
        np.testing.assert_allclose(scale.deviation.numpy(), values.std(0), rtol=rtol)
        assert (scale.mean != everything.mean(0)).all()


def test_alpha_weighs_the_two_heads(rows):
    parts = split(rows, 0)
    (_, species), (_, mass) = (train(*parts, alpha=alpha, epochs=10) for alpha in (0.0, 1.0))
    assert mass[-1].train.rmse < 400 < species[-1].train.rmse
    assert mass[-1].train.accuracy < 0.9 < species[-1].train.accuracy
    assert mass[-1].train.loss == mass[-1].train.regression
    assert species[-1].train.loss == species[-1].train.classification


def test_each_epoch_is_told_as_it_ends(rows):
    told = []
    _, history = train(*split(rows, 0), epochs=3, on_epoch=told.append)
    assert told == history
    assert len(told) == 3


def test_scale_by_hand():
    scale = Scale(3)
    scale.fit(torch.tensor([[1.0, 5.0, NAN], [3.0, 5.0, NAN], [NAN, 5.0, NAN]]))
    assert scale.mean.tolist() == [2.0, 5.0, 0.0]
    assert scale.deviation.tolist() == [1.0, 1.0, 1.0]
    values = torch.tensor([[4.0, 6.0, 0.5]])
    assert scale(values).tolist() == [[2.0, 1.0, 0.5]]
    assert scale.restore(scale(values)).equal(values)


def test_a_missing_input_counts_as_the_mean(rows):
    """In the outputs and in every gradient."""
    parts = split(rows, 0)
    model, _ = train(*parts, epochs=1)
    holes = torch.rand(parts.train.inputs.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    runs = []
    for value in (torch.tensor(NAN), model.inputs.mean):
        model.zero_grad()
        outputs = model(torch.where(holes, value, parts.train.inputs))
        fused_loss.combined_loss(
            model.mass(outputs[0]), outputs[1], model.mass(parts.train.mass), parts.train.species
        ).backward()
        runs.append([*outputs, *(p.grad for p in model.parameters())])
    for missing, mean in zip(*runs, strict=True):
        assert missing.isfinite().all()
        assert missing.equal(mean)


def test_missing_inputs_in_training_are_no_error(rows):
    parts = split(rows, 0)
    inputs = parts.train.inputs.clone()
    inputs[::5, :3] = NAN
    model, history = train(parts.train._replace(inputs=inputs), parts.held_out, epochs=20)
    assert weights(model).isfinite().all()
    assert history[-1].held_out.accuracy > 0.9


def test_scores_by_hand():
    scale = Scale(1)
    scale.mean.fill_(4000.0)
    scale.deviation.fill_(500.0)
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    rows = Rows(torch.zeros(2, 8), torch.tensor([[4000.0], [3000.0]]), torch.tensor([1, 1]))
    found = score(0.25, scale, (torch.tensor([[4300.0], [3400.0]]), logits), rows)
    mse = (0.6**2 + 0.8**2) / 2
    ce = (np.log(3) + np.log(np.exp(1) + np.exp(2) + 1) - 2) / 2
    assert found.accuracy == 0.5  # of equal logits the first counts
    expected = (np.sqrt((300**2 + 400**2) / 2), 0.25 * mse + 0.75 * ce, mse, ce)
    # Each value is a handful of float32 operations.
    np.testing.assert_allclose(found[1:], expected, rtol=8 * torch.finfo(torch.float32).eps)


def test_evaluation_builds_no_graph_and_gives_the_scores_of_the_outputs(rows):
    model = PenguinModel()
    with torch.no_grad():
        outputs = model(rows.inputs)
    assert evaluate(0.5, model, rows) == score(0.5, model.mass, outputs, rows)
