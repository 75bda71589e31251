import warnings

import onnx
import pytest
import torch
from _export import mlp, mlp_proto, rows, traced_bytes
from onnx import TensorProto, helper
from torch import nn

from fused_loss.export import OnnxDualHead, OnnxExportError, export_onnx
from fused_loss.export import trace as trace_file
from fused_loss.export.signature import Signature
from fused_loss.export.trace import cleaned, traced

SECRET = "/home/someone/secret/model.py"


def told(thing):
    """`thing`, with a path in every text that the exporter may leave."""
    thing.doc_string = SECRET
    entry = thing.metadata_props.add()
    entry.key = entry.value = SECRET
    return thing


def graph_with(node):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])
    constant = helper.make_tensor("c", TensorProto.FLOAT, (), [1.0])
    graph = helper.make_graph([node], "g", [value], [value], [constant], value_info=[value])
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        told(item)
    return told(graph)


def test_paths_and_stack_traces_are_taken_out_of_the_model_and_all_that_is_in_it():
    inner = told(helper.make_node("Identity", ["x"], ["y"]))
    branch = told(helper.make_node("If", ["c"], ["y"], then_branch=graph_with(inner)))
    branch.attribute[0].doc_string = SECRET
    loop = told(helper.make_node("Many", ["c"], ["y"], bodies=[graph_with(branch)]))
    function = told(helper.make_function("d", "F", ["x"], ["y"], [inner], []))
    model = told(helper.make_model(graph_with(loop), functions=[function], ir_version=13))
    assert model.SerializeToString().count(SECRET.encode()) > 30
    clean = cleaned(model)
    assert SECRET.encode() not in clean.SerializeToString()
    assert clean.ir_version == 10
    then = clean.graph.node[0].attribute[0].graphs[0].node[0].attribute[0].g
    assert then.node[0].op_type == "Identity"
    assert then.initializer[0].float_data[0] == 1.0


def test_an_older_ir_version_is_kept():
    assert cleaned(onnx.ModelProto(ir_version=8)).ir_version == 8


def test_the_bytes_are_always_the_same():
    again = traced_bytes(mlp(), rows(1))  # traced from one row instead of many
    assert again == mlp_proto().SerializeToString(deterministic=True)


def test_the_first_cause_is_what_is_said_and_the_callers_state_comes_back(monkeypatch, capfd):
    def fails(*args, **options):
        warnings.warn("a note", stacklevel=1)
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise RuntimeError("general advice") from cause

    monkeypatch.setattr(torch.onnx, "export", fails)
    filters, random = warnings.filters.copy(), torch.get_rng_state()
    logger = trace_file.logging.getLogger("torch.onnx")
    level = logger.level
    with pytest.raises(OnnxExportError, match=r"^torch.onnx.export failed: 'the cause'$"):
        traced(mlp(), (rows(),), Signature(), 20)
    assert warnings.filters == filters
    assert logger.level == level
    assert torch.equal(random, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")


def test_where_a_model_goes_by_values_is_said_and_the_exporters_own_words_are_its_cause(
    monkeypatch,
):
    def forward(x):
        raise RuntimeError("a guard on a data-dependent expression, see TORCH_LOGS")

    def fails(*args, **options):
        try:
            forward(None)
        except RuntimeError as cause:
            raise RuntimeError("general advice") from cause

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(OnnxExportError) as caught:
        traced(mlp(), (rows(),), Signature(), 20)
    said = str(caught.value)
    assert "(test_export_trace.py, line " in said
    assert ', in forward: `raise RuntimeError("a guard on a data-dep' in said
    assert said.endswith("choose between results with torch.where, or go by shapes alone")
    assert str(caught.value.__cause__) == "general advice"
    monkeypatch.setattr(trace_file, "FOREIGN", "")  # none of the lines is the user's
    with pytest.raises(OnnxExportError, match="the values of a tensor, and a file goes one way"):
        traced(mlp(), (rows(),), Signature(), 20)


class Named(nn.Module):
    """Two heads, with a buffer of any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.Linear(5, 4)
        self.register_buffer(name, torch.tensor(0.3))
        self.name = name

    def forward(self, x):
        found = self.heads((x - getattr(self, self.name)).exp().relu())
        return found[:, :1], found[:, 1:]


@pytest.mark.parametrize("name", ["mean", "std", "std_0", "exp", "relu", "linear"])
def test_a_weight_keeps_its_name_and_what_else_has_it_gives_way(name, tmp_path):
    """Of the options' own constants, and of the values between the operators."""
    stats = {"mean": [40.0], "std": [8.0]}
    scale = {"mean": [0.0] * 5, "std": [1.0] * 5}
    path = tmp_path / "m.onnx"
    export_onnx(Named(name), torch.randn(4, 5), path, normalize=scale, denormalize=stats)
    proto = onnx.load(path)
    assert name in {weight.name for weight in proto.graph.initializer}


def test_an_output_may_have_the_name_of_a_value_between(tmp_path):
    names = ("relu", "linear")
    export_onnx(Named("b"), torch.randn(4, 5), tmp_path / "m.onnx", output_names=names)
    assert OnnxDualHead(tmp_path / "m.onnx").output_names == names


@pytest.mark.parametrize("name", ["input", "regression_output"])
def test_a_weight_named_as_an_input_or_output_is_an_error(name, tmp_path):
    with pytest.raises(OnnxExportError, match=rf"buffer named '{name}'.*give other input_names"):
        export_onnx(Named(name), torch.randn(4, 5), tmp_path / "m.onnx")
