import json

import onnx
import pytest
from _export import mlp_bytes, mlp_proto

from fused_loss.export.metadata import recorded, weights_file, with_metadata
from fused_loss.export.options import options
from fused_loss.export.seal import digest
from fused_loss.export.signature import Signature
from fused_loss.export.weights import Record


def entries(file):
    return {entry.key: entry.value for entry in onnx.load_from_string(file).metadata_props}


def test_what_is_written_is_json_sealed_and_read_back():
    asked = options(("input",), softmax=True, label=True, class_names=["ä", "b", "c"], unit="g")
    signature = Signature(roles=("regression", "classification", "label"))
    weights = Record("m.0.data", "00ff", 3)
    file = with_metadata(mlp_proto(), signature, asked, None, weights)
    assert digest(file)[1]
    assert with_metadata(mlp_proto(), signature, asked, None, weights) == file
    found = entries(file)
    assert all(key.startswith("fused_loss.") for key in found)
    assert recorded(found) == {
        "roles": {
            "regression": "regression_output",
            "probabilities": "classification_output",
            "label": "label",
        },
        "class_names": ["ä", "b", "c"],
        "external_data": {"file": "m.0.data", "sha256": "00ff", "bytes": 3},
        "label": True,
        "softmax": True,
        "unit": "g",
    }


def test_a_damaged_entry_is_named_and_others_are_none_of_ours():
    assert recorded({"author": "someone", "fused_loss.sha256": "00ff"}) == {}
    with pytest.raises(ValueError, match=r"the metadata fused_loss.roles is damaged"):
        recorded({"fused_loss.roles": "{"})


def test_the_file_of_weights_is_that_of_the_metadata(tmp_path):
    path = tmp_path / "m.onnx"
    assert weights_file(path) is None
    path.write_bytes(mlp_bytes())
    assert weights_file(path) is None
    path.write_bytes(b"damaged")
    assert weights_file(path) is None
    record = Record("m.0.data", "00ff", 3)
    path.write_bytes(with_metadata(mlp_proto(), Signature(), options(("x",)), None, record))
    assert weights_file(path) == "m.0.data"
    assert json.dumps(record.to_dict())
