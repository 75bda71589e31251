import numpy as np
import pytest
import torch
from _export import rows

from fused_loss.export.inputs import ROWS_PER_SIZE, data_cases, drawn_cases, standard_example

SIZES = (0, 1, 2, 7, 64)


def test_every_size_is_drawn_until_it_has_eight_rows():
    cases = list(drawn_cases((rows(),), SIZES, seed=0))
    assert [case.batch for case in cases] == list(SIZES)
    assert [len(case.draws) for case in cases] == [1, 8, 4, 2, 1]
    for case in cases:
        assert all(x.shape == (case.batch, 4) for (x,) in case.draws)
        assert case.batch == 0 or case.batch * len(case.draws) >= ROWS_PER_SIZE


def test_a_seed_repeats_and_another_differs():
    drawn = [next(iter(drawn_cases((rows(),), (7,), seed))).draws[0][0] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_features_keep_their_own_scale():
    scale = torch.tensor([1e-6, 1.0, 1e6, 0.0])
    example = rows(64) * scale + torch.tensor([0.0, 0.0, 0.0, 5.0])
    (case,) = drawn_cases((example,), (4096,), seed=0)
    ((x,),) = case.draws
    slack = 5 / (2 * len(x)) ** 0.5  # five standard errors of a standard deviation
    # A row of the example plus noise of the same deviation: √2 of it.
    ratio = x.std(0)[:3] / example.std(0, correction=0)[:3]
    assert torch.allclose(ratio, torch.tensor(2.0).sqrt(), rtol=slack)
    # A position that does not vary: its own size as the deviation.
    assert torch.allclose(x[:, 3].std(), torch.tensor(5.0), rtol=slack)
    assert torch.allclose(x[:, 3].mean(), torch.tensor(5.0), rtol=2 * slack)


@pytest.mark.parametrize("value", [0.0, 3.0, torch.nan, torch.inf])
def test_a_single_row_is_varied_too(value):
    (case,) = drawn_cases((torch.full((1, 2), value),), (64,), seed=0)
    ((x,),) = case.draws
    finite = torch.isfinite(torch.tensor(value))
    assert bool(torch.isfinite(x).all()) is bool(finite)
    assert x[x.isfinite()].unique().numel() == (128 if finite else 0)


def test_integers_and_booleans_take_values_that_stood_at_their_place():
    index = torch.stack([torch.arange(6), torch.full((6,), 9)], 1)
    flag = torch.tensor([True] * 5 + [False])
    (case,) = drawn_cases((rows(6), index, flag), (64,), seed=0)
    ((_, i, b),) = case.draws
    assert i[:, 0].unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert i[:, 1].unique().tolist() == [9]
    assert b.dtype == torch.bool
    (empty,) = drawn_cases((index,), (0,), seed=0)
    assert empty.draws[0][0].shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_is_the_examples(dtype):
    (case,) = drawn_cases((rows(dtype=dtype),), (2,), seed=0)
    assert case.draws[0][0].dtype == dtype


def test_the_users_rows_are_all_run_and_nothing_else():
    data = (torch.arange(20.0).reshape(10, 2), torch.arange(10))
    cases = list(data_cases(data, (0, 1, 4), seed=0))
    assert [case.batch for case in cases] == [0, 1, 4, 4, 4, 2]
    assert torch.equal(torch.cat([case.draws[0][0] for case in cases[3:]]), data[0])
    for case in cases:
        x, i = case.draws[0]
        assert torch.equal(x, data[0][i])


def test_without_an_example_the_inputs_are_standard_normal():
    shapes = {"a": ["batch", 3, 2], "b": ["batch"]}
    dtypes = {"a": np.dtype("float16"), "b": np.dtype("float64")}
    a, b = standard_example(shapes, dtypes, seed=0)
    assert (a.shape, a.dtype) == ((64, 3, 2), torch.float16)
    assert (b.shape, b.dtype) == ((64,), torch.float64)
    assert 0.5 < a.float().std() < 1.5


@pytest.mark.parametrize(
    ("shape", "dtype"), [(["batch", "length"], "float32"), (["batch", 2], "int64")]
)
def test_what_a_file_does_not_say_must_be_given(shape, dtype):
    with pytest.raises(ValueError, match="the file does not say what index may hold"):
        standard_example({"index": shape}, {"index": np.dtype(dtype)}, seed=0)
