import numpy as np
import pytest
import torch

from fused_loss.export.signature import OUTPUT_NAMES, Signature, as_tensors, batch_sizes


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (
            {"input_names": "input"},
            TypeError,
            "input_names must be a tuple of strings, got 'input'",
        ),
        ({"input_names": (1,)}, TypeError, "must be a tuple of strings"),
        ({"input_names": ()}, ValueError, "must hold names that are not empty"),
        ({"input_names": ("a", "")}, ValueError, "must hold names that are not empty"),
        ({"output_names": ("a", "b", "c")}, ValueError, "must be two names, .* got 3"),
        ({"output_names": OUTPUT_NAMES[::-1]}, ValueError, "are swapped: .* regression first"),
        ({"output_names": ("a", "a")}, ValueError, "must all differ"),
        ({"input_names": ("a",), "output_names": ("a", "b")}, ValueError, "must all differ"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(names, error, said):
    with pytest.raises(error, match=said):
        Signature(**names)


def test_a_list_of_names_is_kept_as_a_tuple():
    assert Signature(["a", "b"]) == Signature(("a", "b"), OUTPUT_NAMES)


def test_axis_0_of_every_input_is_the_batch_in_the_nesting_of_forward():
    batch = {0: "batch"}
    assert Signature(("a", "b")).dynamic_shapes == ((batch, batch),)
    assert Signature(("a",)).dynamic_shapes == ((batch,),)


def test_outputs_are_named_by_role_in_the_order_of_the_file():
    roles = ("regression", "classification", "label", "loss")
    outputs = Signature(output_names=("price", "grade"), roles=roles).outputs
    assert list(outputs.items()) == list(
        zip(roles, ("price", "grade", "label", "loss"), strict=True)
    )
    assert Signature(roles=("loss",)).outputs == {"loss": "loss"}
    with pytest.raises(ValueError, match="must all differ"):
        Signature(output_names=("price", "label"), roles=roles)


def test_arrays_become_tensors_of_the_same_values():
    arrays = (
        np.arange(6, dtype=">f8").reshape(3, 2)[:, ::-1],
        torch.ones(3, requires_grad=True),
        np.array([True, False, True]),
    )
    tensors = as_tensors("example", arrays, 3)
    assert [tensor.dtype for tensor in tensors] == [torch.float64, torch.float32, torch.bool]
    assert tensors[0].tolist() == [[1, 0], [3, 2], [5, 4]]
    assert not tensors[1].requires_grad
    tensors[0][0, 0] = 9.0
    assert arrays[0][0, 0] == 1.0
    assert len(as_tensors("example", np.ones((2, 1)), 1)) == 1


@pytest.mark.parametrize(
    ("arrays", "error", "said"),
    [
        ("x", TypeError, "rows must be a tensor, a NumPy array or a tuple of them, got str"),
        ({"a": np.ones(1)}, TypeError, "got dict"),
        ([[1.0, 2.0], [3.0]], TypeError, "rows must hold tensors or NumPy arrays, got list"),
        (np.float32(1), TypeError, "got float32"),
        ([np.ones(2)], ValueError, "rows has 1 tensors and input_names has 2 names"),
        ([np.ones(2), np.ones(3)], ValueError, r"same number of rows in every input: \[\(2,\)"),
        ([np.ones(()), np.ones(())], ValueError, "must have a batch axis first"),
        ([np.ones((0, 2)), np.ones(0)], ValueError, "rows has no row: give at least one"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(arrays, error, said):
    with pytest.raises(error, match=said):
        as_tensors("rows", arrays, 2)


def test_batch_sizes_are_sorted_and_once_each():
    assert batch_sizes("sizes", [7, 0, 7, 1]) == (0, 1, 7)


@pytest.mark.parametrize("sizes", [(), (0,), (1, -1), (1.0,), (True,), ("1",)])
def test_batch_sizes_that_verify_nothing_are_refused(sizes):
    with pytest.raises(
        ValueError, match=r"^sizes must (be whole numbers >= 0|hold a size above 0)"
    ):
        batch_sizes("sizes", sizes)
