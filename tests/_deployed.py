"""Files as an export with options writes them: roles, class names, a unit, further outputs."""

import json
from typing import Any

import onnx
from _export import mlp_bytes
from onnx import TensorProto, helper

from fused_loss.export.seal import PREFIX, sealed

ROLES = {
    "regression": "regression_output",
    "classification": "classification_output",
    "label": "label",
}
SPECIES = ("Adelie", "Chinstrap", "Gentoo")
ABOUT: dict[str, Any] = {
    "roles": ROLES,
    "class_names": SPECIES,
    "unit": "g",
    "normalize": {"input": {"mean": [0.0] * 4, "std": [1.0] * 4}},
    "tolerance": {"regression_output": 2e-6, "classification_output": 3e-6},
    "observed_error": {"regression_output": 1e-7, "classification_output": 2e-7},
    "versions": {"torch": "2.13.0", "onnx": "1.23.2"},
}


def labelled_bytes(**about: Any) -> bytes:
    """`mlp()` with the label as a third output, which stands first in the file."""
    return described(ABOUT | about, _add_label)


def described(about: dict[str, Any], edit: Any = lambda graph: None) -> bytes:
    """`mlp()` with these entries of metadata, sealed."""
    proto = onnx.load_from_string(mlp_bytes())
    proto.ClearField("metadata_props")
    edit(proto.graph)
    for key, value in about.items():
        proto.metadata_props.add(key=PREFIX + key, value=json.dumps(value))
    return sealed(proto.SerializeToString(deterministic=True))


def _add_label(graph: Any) -> None:
    node = helper.make_node("ArgMax", ["classification_output"], ["label"], axis=1, keepdims=0)
    graph.node.append(node)
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]), *graph.output]
    graph.ClearField("output")
    graph.output.extend(outputs)
