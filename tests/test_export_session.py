"""Models that onnxruntime cannot run on an empty batch: there it would end the process."""

import numpy as np
import pytest
import torch
from torch import nn

from fused_loss.export import OnnxDualHead, OnnxVerificationError, export_onnx, verify_onnx
from fused_loss.export.session import EmptyBatchError, open_session


class Recurrent(nn.Module):
    """(N, 5, 4) -> (N, 1), (N, 3)."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = kind(4, 8, batch_first=True)
        self.regression_head, self.classification_head = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x):
        last = self.trunk(x)[0][:, -1]
        return self.regression_head(last), self.classification_head(last)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_an_empty_batch_is_not_run_and_nothing_comes_of_nothing(tmp_path, kind):
    model, path = Recurrent(kind), tmp_path / "m.onnx"
    example = torch.randn(8, 5, 4)
    report = export_onnx(model, example, path, label=True).report
    empty = [one for one in report.comparisons if one.batch == 0]
    assert {one.problem for one in empty} == {
        "not run: onnxruntime ends the process on an empty batch of an LSTM or a GRU"
    }
    assert all(one.passed for one in empty)
    assert verify_onnx(path, model, example).passed
    session = OnnxDualHead(path)
    nothing = np.zeros((0, 5, 4), np.float32)
    assert [head.shape for head in session(nothing)] == [(0, 1), (0, 3)]
    assert [part.shape for part in session.predict(nothing)] == [(0, 1), (0, 3), (0,)]
    with pytest.raises(EmptyBatchError):
        open_session(path).run(None, {"input": nothing})
    with torch.no_grad():
        expected = model(example)
    for found, wanted in zip(session(example), expected, strict=True):
        assert np.abs(found - wanted.numpy()).max() <= 128 * 2.0**-23 * wanted.abs().max()
    with torch.no_grad():
        model.regression_head.weight[0, 0] += 2e-4
    with pytest.raises(OnnxVerificationError, match="regression_output: max error"):
        verify_onnx(path, model, example)
