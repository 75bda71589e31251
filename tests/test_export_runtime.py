"""`OnnxDualHead` and the session behind it; the file is the one that `_export` traces once."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from _deployed import SPECIES, labelled_bytes
from _export import contents, edited, mlp, mlp_bytes, rows
from onnx import TensorProto, helper

from fused_loss.export import MissingDependencyError, OnnxDualHead, OnnxLoadError
from fused_loss.export.session import open_session


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp_bytes())
    return path


def model_file(path, inputs, edit=lambda graph: None):
    """A file made by hand: both heads are the first input, as floats."""
    nodes = [
        helper.make_node("Cast", [inputs[0].name], [name], to=TensorProto.FLOAT)
        for name in ("regression_output", "classification_output")
    ]
    outputs = [
        helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["batch", 2])
        for node in nodes
    ]
    graph = helper.make_graph(nodes, "hand", inputs, outputs)
    edit(graph)
    opset = helper.make_opsetid("", 20)
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString()
    )
    return path


def test_arrays_in_arrays_out(path):
    session = OnnxDualHead(path, threads=1)
    x = rows(5).numpy()
    before = x.copy()
    regression, classification = session(x)
    with torch.no_grad():
        expected = mlp().eval()(torch.from_numpy(x))
    for found, eager in zip((regression, classification), expected, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (5, 3)
        # Both round in float32: 64 ulp of the largest value, the bound at which files are accepted.
        assert np.abs(found - eager.numpy()).max() <= 128 * 2.0**-23 * eager.abs().max()
    assert np.array_equal(x, before)
    assert session.input_names == ("input",)
    assert session.input_shapes == (("batch", 4),)
    assert session.input_dtypes == (np.dtype("float32"),)
    assert session.output_names == ("regression_output", "classification_output")
    assert session.output_shapes == (("batch", 3), ("batch", 3))
    assert repr(session) == (
        f"OnnxDualHead('{path}': input float32['batch', 4] -> "
        "regression_output, classification_output, on CPUExecutionProvider)"
    )


def test_tensors_strides_and_rows_of_any_number_give_the_same_values(path):
    session = OnnxDualHead(path)
    x = rows(8).numpy()
    heads = session(x)
    others = {
        "tensor": torch.from_numpy(x),
        "with gradient": torch.from_numpy(x).requires_grad_(),
        "transposed": np.asfortranarray(x),
        "every second": np.repeat(x, 2, axis=0)[::2],
        "reversed": x[::-1].copy()[::-1],
        "read only": x.copy(),
    }
    others["read only"].flags.writeable = False
    for name, other in others.items():
        assert all(map(np.array_equal, heads, session(other))), name
    for found, all_rows in zip(session(np.broadcast_to(x[:1], (3, 4))), heads, strict=True):
        # One row alone and three at once may be summed in another order.
        assert np.abs(found - all_rows[:1]).max() <= 64 * 2.0**-23 * np.abs(all_rows).max()


def test_an_empty_batch_has_empty_heads(path):
    assert [head.shape for head in OnnxDualHead(path)(np.empty((0, 4), "f"))] == [(0, 3), (0, 3)]


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (
            np.ones((2, 4)),
            TypeError,
            r"input is float64, .* takes float32: .* x.astype\('float32'\)",
        ),
        (np.ones((2, 4), "i4"), TypeError, "input is int32, the model takes float32"),
        (np.ones((2, 4), np.float16), TypeError, "input is float16"),
        (np.ones((2, 4), ">f4"), TypeError, r"input is in the other byte order \(>f4\)"),
        (torch.ones(2, 4).bfloat16(), TypeError, "input is torch.bfloat16, which NumPy lacks"),
        (torch.ones(2, 4, device="meta"), TypeError, r"input is on meta: give it as x.cpu\(\)"),
        ([[1.0, 2.0, 3.0, 4.0]], TypeError, "must be a NumPy array or a tensor, got list"),
        (np.ones((2, 5), "f"), ValueError, r"shape \(2, 5\), the model takes \(batch, 4\)$"),
        (np.ones(4, "f"), ValueError, r"shape \(4,\), .* one sample needs a batch axis: x\[None\]"),
        (np.ones((1, 2, 4), "f"), ValueError, r"shape \(1, 2, 4\), the model takes \(batch, 4\)$"),
    ],
)
def test_what_the_model_does_not_take_is_named(path, x, error, said):
    with pytest.raises(error, match=said):
        OnnxDualHead(path)(x)


@pytest.mark.parametrize("count", [0, 2])
def test_the_number_of_inputs_is_checked(path, count):
    said = rf"takes 1 inputs \('input',\), got {count}"
    with pytest.raises(ValueError, match=said):
        OnnxDualHead(path)(*[rows()] * count)


def test_inputs_must_have_the_same_number_of_rows(tmp_path):
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.INT64, ["batch", 2]),
        helper.make_tensor_value_info("b", TensorProto.BOOL, ["batch"]),
    ]
    session = OnnxDualHead(model_file(tmp_path / "m.onnx", inputs))
    a, b = np.arange(4).reshape(2, 2), np.ones(3, bool)
    with pytest.raises(ValueError, match=r"same number of rows, got \{'a': 2, 'b': 3\}"):
        session(a, b)
    regression, classification = session(a, b[:2])
    assert np.array_equal(regression, a.astype("f"))
    assert np.array_equal(classification, a.astype("f"))


def test_heads_in_the_other_order_are_put_right(tmp_path):
    path = tmp_path / "m.onnx"

    def swap(graph):
        outputs = list(graph.output)[::-1]
        graph.ClearField("output")
        graph.output.extend(outputs)

    path.write_bytes(edited(mlp_bytes(), swap))
    session, x = OnnxDualHead(path), rows()
    assert session.output_names == ("regression_output", "classification_output")
    path.write_bytes(mlp_bytes())
    assert all(map(np.array_equal, session(x), OnnxDualHead(path)(x)))


def test_threads_of_python_share_a_session(path):
    session = OnnxDualHead(path, threads=2)
    batches = [rows(n).numpy() for n in range(1, 40)]
    alone = [session(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(session, batches), alone, strict=True):
            assert all(map(np.array_equal, found, expected))


def test_threads_below_one_and_a_provider_that_is_not_there(path, monkeypatch):
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        OnnxDualHead(path, threads=0)
    with pytest.raises(ValueError, match=r"providers must be some of .*CPUExecutionProvider'\]$"):
        OnnxDualHead(path, providers=["NoSuchProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for provider in ("CUDAExecutionProvider", ("TensorrtExecutionProvider", {})):
        with pytest.raises(ValueError, match="install onnxruntime-gpu in the place of onnxruntim"):
            OnnxDualHead(path, providers=[provider, "CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"providers must be some of .*, got \[\]"):
        OnnxDualHead(path, providers=[])
    session = OnnxDualHead(path, providers=[("CPUExecutionProvider", {})])
    assert session(rows(1))[0].shape == (1, 3)
    assert session.providers == ("CPUExecutionProvider",)


def test_a_provider_that_does_not_start_is_said(path, monkeypatch):
    """As onnxruntime has it on a machine without the driver: it is listed, and then not used."""
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(wanted))
    make = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, providers: make(*args, providers=wanted[1:])
    )
    said = r"CUDAExecutionProvider does not start here: m.onnx runs on CPUExecutionProvider"
    with pytest.warns(RuntimeWarning, match=said):
        session = OnnxDualHead(path, providers=wanted)
    assert session.providers == ("CPUExecutionProvider",)


def test_where_the_cpu_is_not_named_nothing_runs_on_it_unasked(path):
    # Part of every build for Linux; it runs no operator of this model.
    with pytest.raises(OnnxLoadError, match="fallback to CPU EP has been explicitly disabled"):
        OnnxDualHead(path, providers=["AzureExecutionProvider"])
    both = OnnxDualHead(path, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert both(rows(1))[0].shape == (1, 3)


def test_options_reach_onnxruntime(path):
    for spinning in (True, False):
        session = OnnxDualHead(path, threads=2, spinning=spinning)
        options = session._session.get_session_options()
        found = options.get_session_config_entry("session.intra_op.allow_spinning")
        assert (options.intra_op_num_threads, found) == (2, str(int(spinning)))
        assert session(rows(3))[0].shape == (3, 3)


def test_the_file_wanted_and_no_other(path):
    digest = hashlib.sha256(mlp_bytes()).hexdigest()
    assert OnnxDualHead(path, sha256=digest)(rows(1))[0].shape == (1, 3)
    with pytest.raises(OnnxLoadError, match=f"its sha256 is {digest}, and sha256='00' is"):
        OnnxDualHead(path, sha256="00")


def test_outputs_by_their_roles_and_the_files_own_label(path):
    path.write_bytes(labelled_bytes())
    session, x = OnnxDualHead(path), rows(5).numpy()
    x[3] = np.nan
    assert session.output_names == ("regression_output", "classification_output")
    assert (session.class_names, session.units) == (SPECIES, ("g",))
    found = session.predict(x)
    assert all(map(partial(np.array_equal, equal_nan=True), found[:2], session(x)))
    right = [*found.classification[:3].argmax(1), -1, found.classification[4].argmax()]
    assert found.label.tolist() == right
    path.write_bytes(mlp_bytes())
    assert OnnxDualHead(path).predict(x).label.tolist() == right
    path.write_bytes(labelled_bytes(class_names=["a", "b"]))
    with pytest.raises(OnnxLoadError, match=r"m.onnx names 2 classes and has 3"):
        OnnxDualHead(path)


def test_a_warm_up_runs_on_zeros(path):
    session = OnnxDualHead(path)
    session.warm_up()
    session.warm_up(0, 1, 7)


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError, match=f"there is no file {path}"):
        OnnxDualHead(path)
    with pytest.raises(FileNotFoundError, match="is a folder, a file is needed"):
        OnnxDualHead(tmp_path)
    for content in (b"", b"no protobuf", mlp_bytes()[:100]):
        path.write_bytes(content)
        with pytest.raises(
            OnnxLoadError, match=r"m\.onnx is not a valid ONNX model: it is "
        ) as caught:
            OnnxDualHead(str(path))
        assert str(tmp_path) not in str(caught.value)

    def unknown(graph):
        graph.node[0].op_type = "Unheard"

    path.write_bytes(edited(mlp_bytes(), unknown))
    with pytest.raises(
        OnnxLoadError, match=r"onnxruntime cannot load m\.onnx: .*Unheard"
    ) as caught:
        OnnxDualHead(str(path))
    assert str(tmp_path) not in str(caught.value)
    path.write_bytes(edited(mlp_bytes(), lambda graph: graph.output.pop()))
    with pytest.raises(OnnxLoadError, match=r"outputs \('regression_output',\): regression and"):
        OnnxDualHead(path)
    text = helper.make_tensor_value_info("words", TensorProto.STRING, ["batch", 2])
    with pytest.raises(OnnxLoadError, match=r"words is a tensor\(string\), which cannot be given"):
        OnnxDualHead(model_file(path, [text]))


def test_bytes_that_have_changed_are_not_run_and_a_change_on_purpose_can_be(path):
    weight = mlp().regression_head.bias.detach().numpy().tobytes()
    flipped = mlp_bytes().replace(weight, bytes([weight[0] ^ 1]) + weight[1:])
    path.write_bytes(flipped)
    with pytest.raises(
        OnnxLoadError, match=r"m.onnx is not what was exported: its sha256 is not .*fused_loss\."
    ):
        OnnxDualHead(path)
    proto = onnx.load_from_string(flipped)
    proto.ClearField("metadata_props")
    path.write_bytes(proto.SerializeToString())
    assert OnnxDualHead(path)(rows(1))[0].shape == (1, 3)


def test_a_file_that_onnx_has_saved_again_is_intact(path):
    onnx.save(onnx.load(path), path)
    assert OnnxDualHead(path)(rows(1))[0].shape == (1, 3)


def test_levels_are_those_of_onnxruntime_and_nothing_is_printed(path, capfd):
    sessions = [open_session(path, level=level) for level in ("DISABLE_ALL", "ENABLE_ALL")]
    levels = [s.get_session_options().graph_optimization_level.name for s in sessions]
    assert levels == ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"]
    path.write_bytes(edited(mlp_bytes(), lambda graph: graph.node.pop()))
    with pytest.raises(OnnxLoadError, match="onnxruntime cannot load"):
        open_session(path)
    assert capfd.readouterr() == ("", "")


def test_without_onnxruntime_the_extra_is_named_and_onnx_is_not_needed(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert OnnxDualHead(path)(rows(1))[0].shape == (1, 3)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingDependencyError, match=r"onnxruntime is needed .*fused-loss\[export\]"
    ):
        OnnxDualHead(path)
    assert contents(path.parent) == {"m.onnx": mlp_bytes()}
