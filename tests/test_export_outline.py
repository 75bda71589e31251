import numpy as np
import onnx
import pytest
from _export import mlp, mlp_bytes
from onnx import TensorProto, helper, numpy_helper

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.outline import mapped, read_outline
from fused_loss.export.wire import entry

FLOAT = TensorProto.FLOAT


def model(*tensors, nodes=(), **fields):
    graph = helper.make_graph(list(nodes), "g", [], [], list(tensors))
    return helper.make_model(graph, **fields).SerializeToString()


def outline(file):
    return read_outline(memoryview(file), "m.onnx")


def refused(said, file):
    with pytest.raises(OnnxLoadError, match=f"^m.onnx is not a valid ONNX model: {said}"):
        outline(file)


def test_a_file_that_was_exported_has_its_weights_and_its_metadata():
    found = outline(mlp_bytes())
    proto = onnx.load_from_string(mlp_bytes())
    assert found.metadata == {entry.key: entry.value for entry in proto.metadata_props}
    stored = {t.name: b"".join(t.data) for t in found.tensors if t.name}
    weights = {t.name: numpy_helper.to_array(t).tobytes() for t in proto.graph.initializer}
    assert stored == weights
    assert mlp().regression_head.weight.detach().numpy().tobytes() in stored.values()


def test_tensors_are_found_wherever_a_model_can_hold_them():
    def value(name):
        return numpy_helper.from_array(np.ones(2, "f"), name)

    inner = helper.make_graph([helper.make_node("Constant", [], ["x"], value=value("deep"))], "i",
                              [], [], [value("branch")])  # fmt: skip
    outer = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    sparse = helper.make_sparse_tensor(
        value("values"), numpy_helper.from_array(np.arange(2), "indices"), [3]
    )
    constant = helper.make_node("Constant", [], ["z"], sparse_value=sparse)
    proto = onnx.load_from_string(model(value("top"), nodes=[outer, constant]))
    body = [helper.make_node("Constant", [], ["w"], value=value("function"))]
    opset = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("own", "f", [], ["w"], body, opset))
    names = [tensor.name for tensor in outline(proto.SerializeToString()).tensors]
    wanted = ["deep", "branch"] * 2 + ["values", "indices", "top", "function"]
    assert sorted(names) == sorted(wanted)


def test_typed_data_counts_as_well_as_raw_bytes():
    tensors = [
        helper.make_tensor("f", FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("i", TensorProto.INT64, [3], [1, -2, 2**60]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("s", TensorProto.STRING, [1], [b"words"]),
        helper.make_tensor("n", TensorProto.INT4, [3], [1, 2, 3]),
    ]
    assert len(outline(model(*tensors)).tensors) == len(tensors)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x04\x95\x10", "it is a pickle, which could run code: nothing of it is read"),
        (b"PK\x03\x04abc", "it is a zip archive"),
        (b"\x93NUMPY", r"it is an .npy array"),
        (b"<!doctype html>", "it is no protobuf message"),
        (b"\x08\x0a", "it has no graph"),
        (b"\x38\x01", "it is no ONNX model: a number stands"),
    ],
)
def test_other_files_are_named(content, said):
    refused(said, content)


def test_every_length_but_the_whole_is_refused():
    whole = model(numpy_helper.from_array(np.ones(3, "f"), "w"))
    for size in range(1, len(whole)):
        try:
            found = outline(whole[:size])
        except OnnxLoadError:
            continue
        # Cut between two fields of the model: what is left is a graph with all its tensors.
        assert [tensor.name for tensor in found.tensors] == ["w"]


def test_a_shape_that_promises_more_than_is_there_is_refused():
    def tensor(dims, **data):
        return TensorProto(name="w", data_type=FLOAT, dims=dims, **data)

    refused("tensor 'w' of 1099511627776 needs 4398046511104 bytes, 8 are there",
            model(tensor([1 << 40], raw_data=b"\0" * 8)))  # fmt: skip
    refused("tensor 'w' of 1099511627776 has 4 bytes", model(tensor([1 << 40], float_data=[1])))
    refused("tensor 'w' has a negative size: -2", model(tensor([-2], raw_data=b"")))
    refused("tensor 'w' has 64 dimensions or more", model(tensor([1] * 65, raw_data=b"\0" * 4)))
    refused("tensor 'w' of 2 needs 8 bytes, 4 are there", model(tensor([2], raw_data=b"\0" * 4)))
    refused("tensor 'w' is external and names no file",
            model(tensor([2], data_location=TensorProto.EXTERNAL)))  # fmt: skip


def test_graphs_within_graphs_end_somewhere():
    graph = b""
    for _ in range(5000):  # deeper than Python recurses: onnx itself cannot write such a file
        graph = entry(1, entry(5, entry(6, graph)))
    refused("graphs are nested deeper than 32", entry(7, graph))


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    path.touch()
    with (
        pytest.raises(OnnxLoadError, match=r"m.onnx is not .*: it is empty \(0 bytes\)"),
        mapped(path),
    ):
        pytest.fail("there is nothing to map")
