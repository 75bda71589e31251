import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fused_loss.demo_data import COLUMNS, Rows
from fused_loss.demo_files import ARRAYS, NAMES, TABLE, staged, write_rows
from fused_loss.export.errors import UsageError

BIRDS = Rows(
    torch.arange(16.0).reshape(2, 8) / 3, torch.tensor([[3000.1], [4000.2]]), torch.tensor([2, 0])
)


def fill(folder, text, names=NAMES):
    for name in names:
        Path(folder, name).write_text(f"{text} {name}", encoding="utf-8")


def stop_after_writing(folder, error):
    fill(folder, "new")
    raise error


def content(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_everything_is_put_in_place(tmp_path):
    folder = tmp_path / "a" / "b"
    with staged(folder) as scratch:
        fill(scratch, "new")
    assert content(folder) == {name: f"new {name}" for name in NAMES}
    assert not scratch.exists()


def test_other_files_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with staged(tmp_path) as scratch:
        fill(scratch, "new")
    assert content(tmp_path).keys() == {"mine.txt", *NAMES}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    fill(tmp_path, "old")
    with pytest.raises(error), staged(tmp_path) as scratch:
        stop_after_writing(scratch, error)
    assert content(tmp_path) == {name: f"old {name}" for name in NAMES}
    assert not scratch.exists()


def test_a_set_that_is_not_complete_changes_nothing(tmp_path):
    fill(tmp_path, "old")
    with pytest.raises(FileNotFoundError, match=NAMES[-1]), staged(tmp_path) as scratch:
        fill(scratch, "new", NAMES[:-1])
    assert content(tmp_path) == {name: f"old {name}" for name in NAMES}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_the_folder_should_be(tmp_path, place):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="not a folder"), staged(tmp_path / place):
        pytest.fail("the block ran")
    assert content(tmp_path) == {"file": "mine"}


def test_a_folder_where_a_file_should_be_is_found_before_the_work(tmp_path):
    (tmp_path / NAMES[2]).mkdir()
    with pytest.raises(IsADirectoryError, match=NAMES[2]), staged(tmp_path):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == [NAMES[2]]


def test_the_table_reads_back_to_the_bit(tmp_path):
    write_rows(tmp_path, BIRDS)
    with (tmp_path / TABLE).open(encoding="utf-8", newline="") as file:
        names, *cells = csv.reader(file)
    assert names == list(COLUMNS)
    np.testing.assert_array_equal(np.array(cells, dtype="float32"), BIRDS.inputs.numpy())


def test_the_arrays_hold_inputs_and_answers(tmp_path):
    write_rows(tmp_path, BIRDS)
    with np.load(tmp_path / ARRAYS, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["body_mass_g", "input", "species"]
        np.testing.assert_array_equal(arrays["input"], BIRDS.inputs.numpy())
        np.testing.assert_array_equal(arrays["body_mass_g"], BIRDS.mass.numpy())
        assert arrays["species"].tolist() == ["Gentoo", "Adelie"]
