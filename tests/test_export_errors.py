import pickle
import sys

import pytest

from fused_loss.export.errors import MissingDependencyError, OnnxVerificationError, require
from fused_loss.export.report import VerificationReport


def test_a_missing_package_names_itself_and_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'fused-loss\[export\]'"
    ) as caught:
        require("onnx")
    assert caught.value.name == "onnx"
    assert str(caught.value).startswith("onnx is needed and cannot be imported")
    assert isinstance(caught.value, ImportError)


def test_a_package_that_is_there_is_given():
    assert require("json").loads("1") == 1


def test_a_refusal_carries_its_report_between_processes():
    report = VerificationReport("m.onnx", "00", 20, 10, {}, {}, {}, 0, "data", ("damaged",))
    error = pickle.loads(pickle.dumps(OnnxVerificationError(report)))
    assert error.report == report
    assert str(error) == "m.onnx is refused:\ndamaged"
