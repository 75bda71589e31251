import numpy as np
import pandas as pd
import pytest
import torch

from fused_loss.demo_data import COLUMNS, HELD_OUT, SPECIES, Rows, encode, load, split

NAN = float("nan")


def table(**changed):
    """One Gentoo of Biscoe, with other values in some columns."""
    row = {
        "species": "Gentoo",
        "island": "Biscoe",
        "bill_length_mm": 47.5,
        "bill_depth_mm": 15.25,
        "flipper_length_mm": 217.0,
        "body_mass_g": 5000.0,
        "sex": "male",
        "year": 2008,
    }
    return pd.DataFrame([row | changed])


def encoded(**changed):
    return encode(table(**changed))


@pytest.fixture(scope="module")
def rows():
    return load()


def test_every_penguin_that_was_weighed_is_there(rows):
    assert [tuple(tensor.shape) for tensor in rows] == [(342, 8), (342, 1), (342,)]
    assert [tensor.dtype for tensor in rows] == [torch.float32, torch.float32, torch.int64]
    assert rows.species.bincount().tolist() == [151, 68, 123]
    assert not rows.inputs.isnan().any()


def test_the_first_penguin(rows):
    named = dict(zip(COLUMNS, rows.inputs[0].tolist(), strict=True))
    assert named == {
        "bill_length_mm": float(np.float32(39.1)),
        "bill_depth_mm": float(np.float32(18.7)),
        "flipper_length_mm": 181.0,
        **dict.fromkeys(("Biscoe", "Dream", "female"), 0.0),
        **dict.fromkeys(("Torgersen", "male"), 1.0),
    }
    assert rows.mass[0].item() == 3750.0
    assert SPECIES[rows.species[0]] == "Adelie"


def test_islands_and_sexes_are_flags(rows):
    flags = rows.inputs[:, 3:]
    assert ((flags == 0) | (flags == 1)).all()
    assert flags[:, :3].sum(0).tolist() == [167, 124, 51]
    assert (flags[:, :3].sum(1) == 1).all()
    # Nine birds that were weighed have no recorded sex.
    assert (flags[:, 3:].sum(1) == 0).sum() == 9


@pytest.mark.parametrize("target", ["species", "body_mass_g"])
def test_a_row_without_a_target_is_dropped(target):
    both = pd.concat([table(**{target: None}), table(flipper_length_mm=200.0)])
    found = encode(both)
    assert len(found.mass) == len(found.species) == 1
    assert found.inputs[0, 2] == 200.0


def test_a_missing_measure_stays_missing():
    found = encoded(bill_depth_mm=NAN)
    expected = torch.tensor([[47.5, NAN, 217.0, 1, 0, 0, 0, 1]])
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("unknown", [None, NAN, pd.NA, "elsewhere"])
@pytest.mark.parametrize(("column", "flags"), [("island", slice(3, 6)), ("sex", slice(6, 8))])
@pytest.mark.parametrize("dtype", [object, "string"])
def test_of_an_unknown_category_every_flag_is_0(column, flags, unknown, dtype):
    found = encode(table(**{column: unknown}).astype({column: dtype}))
    expected = torch.tensor([[47.5, 15.25, 217.0, 1, 0, 0, 0, 1]])
    expected[:, flags] = 0
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=0)


def numbered(rows):
    """The same rows, whose mass is their number."""
    return rows._replace(mass=torch.arange(len(rows.mass))[:, None].float())


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_are_disjoint_and_complete(rows, seed):
    parts = split(numbered(rows), seed)
    numbers = [part.mass.flatten().long() for part in parts]
    assert torch.cat(numbers).sort().values.tolist() == list(range(342))
    for part, chosen in zip(parts, numbers, strict=True):
        assert part.inputs.equal(rows.inputs[chosen])
        assert part.species.equal(rows.species[chosen])


def test_each_species_is_held_out_in_the_same_share(rows):
    held_out = split(rows, 0).held_out.species.bincount().tolist()
    assert held_out == [round(HELD_OUT * count) for count in (151, 68, 123)] == [30, 14, 25]


def test_the_seed_decides_and_nothing_else_does(rows):
    state = torch.random.get_rng_state()
    first, again, other = (split(numbered(rows), seed).held_out.mass for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.random.get_rng_state().equal(state)


def test_an_order_in_the_table_is_not_an_order_in_the_split(rows):
    """The table is sorted: the first birds of a species must not be those held out."""
    held_out = split(numbered(rows), 0).held_out.mass.flatten()
    adelies = held_out[held_out < 151]
    assert adelies.max() > 100
    assert adelies.min() < 50


def test_a_species_that_is_absent_is_no_error():
    rows = Rows(torch.zeros(4, 8), torch.zeros(4, 1), torch.tensor([0, 0, 2, 2]))
    parts = split(rows, 0)
    assert sum(len(part.mass) for part in parts) == 4
