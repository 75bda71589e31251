import numpy as np
import onnx
import pytest
import torch
from _export import (
    convolutional,
    edited,
    initializer,
    mlp,
    mlp_bytes,
    replace_values,
    rows,
    traced_bytes,
)
from _zoo import ZOO
from torch import nn

from fused_loss.export.state import differences


def found(tmp_path, model, file, edit=lambda graph: None):
    path = tmp_path / "m.onnx"
    path.write_bytes(edited(file, edit))
    return differences(path, model.eval())


def test_the_models_own_weights_are_no_difference(tmp_path):
    assert found(tmp_path, mlp(), mlp_bytes()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v + np.float32(2e-4),
            "is not the model's: 3 of 3 values differ, by up to 2.0e-04",
        ),
        (lambda v: v[::-1], "holds the model's values in another order"),
        (lambda v: v * np.float32(np.nan), "holds 3 NaN or inf"),
        (lambda v: np.nextafter(v, np.float32(9)), "is not the model's: 3 of 3"),
    ],
)
def test_a_weight_that_is_not_the_models_is_named(tmp_path, change, said):
    def edit(graph):
        bias = next(t for t in graph.initializer if t.name == "classification_head.bias")
        replace_values(bias, change)

    (difference,) = found(tmp_path, mlp(), mlp_bytes(), edit)
    assert difference.startswith(f"classification_head.bias in the file {said}")


def test_a_matrix_that_the_exporter_has_transposed_is_held_too(tmp_path):
    make, x = ZOO["transformer"]
    file = traced_bytes(make(0), x)
    assert found(tmp_path, make(0), file) == ()

    def edit(graph):
        replace_values(
            initializer(graph, (32, 96)), lambda v: v + np.float32(1e-4) * (v == v.max())
        )

    (difference,) = found(tmp_path, make(0), file, edit)
    assert difference.startswith("encoder.layers.0.self_attn.in_proj_weight, transposed in the ")
    assert "1 of 3072 values differ, by up to 1.0e-04" in difference


def trained_cnn():
    """With running statistics, which the exporter folds into the convolution."""
    model = convolutional()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(3):
            model.train()(rows(16, 2, 4, 5) * 3 + 1)
        nn.init.normal_(model.trunk[1].weight)
        nn.init.normal_(model.trunk[1].bias)
    return model


def test_a_batch_norm_that_is_folded_into_a_convolution_is_folded_here(tmp_path):
    file = traced_bytes(trained_cnn(), rows(16, 2, 4, 5))
    assert "BatchNormalization" not in {n.op_type for n in onnx.load_from_string(file).graph.node}
    assert found(tmp_path, trained_cnn(), file) == ()
    for shape in ((6, 2, 3, 3), (6,)):

        def edit(graph, shape=shape):
            replace_values(initializer(graph, shape), lambda v: v * np.float32(1 + 1e-4))

        (difference,) = found(tmp_path, trained_cnn(), file, edit)
        assert "trunk.0." in difference


def test_a_narrower_dtype_is_for_the_outputs_to_judge_and_a_wider_one_is_another_weight(tmp_path):
    assert found(tmp_path, mlp().double(), mlp_bytes()) == ()
    wider = found(tmp_path, mlp().half(), mlp_bytes())
    assert len(wider) == 6
    assert wider[0].endswith("is float32 and must be float16, as it was exported")
