import argparse
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import torch
from _export import mlp, rows

from fused_loss.export.cli_model import add_options, load_named, shape, whole_numbers, words
from fused_loss.export.errors import UsageError
from fused_loss.export.signature import OUTPUT_NAMES, VERIFY_BATCHES


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    add_options(parser)
    return parser.parse_args(["m.onnx", "--model", "_export:mlp", *arguments])


def test_options_read_as_they_are_written():
    assert words("a, b") == ("a", "b")
    assert whole_numbers("0,1,64") == (0, 1, 64)
    assert shape("3,8,8") == (3, 8, 8)
    with pytest.raises(ArgumentTypeError, match="3,0 must hold sizes of 1 and above"):
        shape("3,0")


def test_the_defaults_are_those_of_the_functions():
    args = parsed()
    assert args.output_names == OUTPUT_NAMES
    assert args.verify_batches == VERIFY_BATCHES
    assert (args.seed, args.checkpoint, args.report, args.quiet) == (0, None, None, False)


def test_a_shape_becomes_standard_normal_rows_in_the_models_dtype():
    named = load_named(parsed("--input-shape", "2,3"), ["input"])
    (example,) = named.example
    assert example.shape == (64, 2, 3)
    assert example.dtype == torch.float32
    assert torch.equal(example, load_named(parsed("--input-shape", "2,3"), ["input"]).example[0])
    assert torch.equal(named.model.trunk[0].weight, mlp().trunk[0].weight)
    assert named.data is None


def test_rows_are_read_by_the_names_of_the_inputs(tmp_path):
    np.savez(tmp_path / "x.npz", a=rows(3).numpy(), b=rows(5).numpy())
    path = str(tmp_path / "x.npz")
    named = load_named(parsed("--example", path, "--verify-data", path), ["b", "a"])
    assert [len(x) for x in named.example] == [5, 3]
    assert torch.equal(named.data[1], rows(3))
    with pytest.raises(UsageError, match=r"x.npz holds \['a', 'b'\], the inputs are \['input'\]"):
        load_named(parsed("--example", path), ["input"])
    with pytest.raises(UsageError, match="input_names and output_names must all differ"):
        load_named(parsed("--example", path), [OUTPUT_NAMES[0]])
