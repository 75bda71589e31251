import numpy as np
import onnx
import pytest
from _export import edited, mlp_bytes
from onnx import TensorProto, helper

from fused_loss.export.signature import Signature
from fused_loss.export.structure import read_structure


def written(folder, graph_edit=lambda graph: None):
    path = folder / "m.onnx"
    path.write_bytes(edited(mlp_bytes(), graph_edit))
    return path


def test_a_file_says_what_it_takes_and_gives(tmp_path):
    structure = read_structure(written(tmp_path))
    assert (structure.opset, structure.ir_version, structure.problems) == (20, 10, ())
    assert structure.inputs == {"input": ["batch", 4]}
    assert structure.dtypes == {"input": np.dtype("float32")}
    assert list(structure.outputs) == ["regression_output", "classification_output"]
    assert structure.differences(Signature()) == ()


def test_every_difference_is_named(tmp_path):
    found = read_structure(written(tmp_path)).differences(Signature(("x",), ("a", "b")))
    assert found == (
        "the inputs are ('input',), they must be ('x',)",
        "the outputs are ('regression_output', 'classification_output'), they must be ('a', 'b')",
    )


def test_an_axis_without_a_name_is_symbolic_and_a_scalar_has_no_batch(tmp_path):
    def edit(graph):
        graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
        graph.node.append(
            helper.make_node("ReduceMean", [graph.output[0].name], ["mean"], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
        del graph.output[1]

    structure = read_structure(written(tmp_path, edit))
    assert structure.inputs == {"input": ["?", 4]}
    signature = Signature(output_names=("regression_output", "mean"))
    assert structure.differences(signature) == ("mean has no batch axis",)


def test_initializers_that_old_files_list_as_inputs_are_no_inputs(tmp_path):
    def edit(graph):
        graph.input.append(helper.make_tensor_value_info("val_0", TensorProto.FLOAT, []))

    assert read_structure(written(tmp_path, edit)).inputs == {"input": ["batch", 4]}


@pytest.mark.parametrize("size", [0, 1, 100, 500])
def test_damage_is_a_problem_in_the_result(tmp_path, size):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes()[:size])
    structure = read_structure(path)
    (problem,) = structure.problems
    assert problem.startswith("not a valid ONNX model: ")
    assert str(tmp_path) not in problem
    assert structure.inputs == {}
    assert structure.differences(Signature()) == ()


def test_a_model_without_an_output_is_not_one(tmp_path):
    path = tmp_path / "m.onnx"
    graph = helper.make_graph([], "empty", [], [])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert read_structure(path).problems == ("not a valid ONNX model: it has no output",)
    onnx.checker.check_model(path)  # which is why it must be asked
