from pathlib import Path

import numpy as np
import pytest
import torch
from _export import mlp, rows
from torch import nn

from fused_loss.export.arrays import load_rows, model_dtype, read_arrays
from fused_loss.export.errors import UsageError


def test_rows_take_the_models_dtype_and_integers_keep_theirs(tmp_path):
    x, index = rows(3).double().numpy(), np.arange(3, dtype=">i4")
    np.save(tmp_path / "x.npy", x)
    (found,) = load_rows(tmp_path / "x.npy", ["input"], torch.float16)
    assert torch.equal(found, rows(3).half())
    np.savez(tmp_path / "x.npz", other=x, index=index, x=x)
    found = load_rows(tmp_path / "x.npz", ["x", "index"], torch.float32)
    assert torch.equal(found[0], rows(3))
    assert found[1].tolist() == [0, 1, 2]
    assert found[1].dtype == torch.int32
    np.savez(tmp_path / "one.npz", anything=x)
    assert torch.equal(load_rows(tmp_path / "one.npz", ["input"], torch.float32)[0], rows(3))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"1,2", "must be an .npy or .npz file"),
        ("x.npy", b"1,2", "x.npy cannot be read: "),
        ("x.npz", b"PK", "x.npz cannot be read: "),
        (
            "x.npy",
            np.array([object()], object),
            "x.npy cannot be read: .*Python objects",
        ),
        ("x.npy", np.array(["a"]), "x.npy: a is <U1, numbers are needed"),
        ("x.npz", {"a": np.ones(2)}, r"x.npz holds \['a'\], the inputs are \['a', 'b'\]"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, name, content, said):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content) if isinstance(content, dict) else np.save(path, content)
    names = ["a", "b"] if isinstance(content, dict) else ["a"]
    with pytest.raises(UsageError, match=said):
        load_rows(path, names, torch.float32)


def test_a_file_of_rows_that_is_not_there():
    with pytest.raises(UsageError, match=r"there is no file no/x\.npy"):
        read_arrays(Path("no/x.npy"), ["a"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_a_model_is_that_of_its_first_weights(dtype):
    assert model_dtype(mlp().to(dtype)) == dtype
    assert model_dtype(nn.ReLU()) == torch.float32
