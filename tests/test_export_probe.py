import pytest
import torch
from _export import TwoInputs, convolutional, mlp, rows
from torch import nn

from fused_loss.export import OnnxExportError, export_onnx
from fused_loss.export.errors import ModelError
from fused_loss.export.probe import isolated
from fused_loss.export.reference import Reference
from fused_loss.export.signature import Signature


def test_autocast_and_gradients_of_the_caller_are_off_and_come_back():
    with torch.autocast("cpu", dtype=torch.bfloat16), isolated():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


class Pixels(nn.Module):
    """One image (C, H, W) or several, as `nn.Conv2d` takes them."""

    def __init__(self):
        super().__init__()
        self.regression_head, self.classification_head = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.regression_head(x), self.classification_head(x)


def test_an_example_that_is_one_sample_is_told_what_it_lacks(tmp_path):
    with pytest.raises(OnnxExportError) as caught:
        export_onnx(mlp(), rows()[0], tmp_path / "m.onnx")
    assert str(caught.value) == (
        "of 4 rows forward makes regression (3,), classification (3,); "
        "is example one sample? It needs a batch axis: x[None]"
    )
    image, mend = rows(1, 2, 4, 5)[0], r"is example one sample\? It needs a batch axis: x\[None\]"
    with pytest.raises(OnnxExportError, match=rf"classification \(3, 4, 5\); {mend}$"):
        Reference(Pixels(), (image,))
    with pytest.raises(ModelError, match=rf"expected 4D input \(got 3D input\); {mend}$"):
        Reference(convolutional(), (image,))  # whose batch norm takes none
    both = (rows()[0], torch.tensor([1, 2, 3, 4]))
    with pytest.raises(OnnxExportError, match=mend):
        Reference(TwoInputs(), both, Signature(("numbers", "index")))


@pytest.mark.parametrize("model", [nn.Linear(5, 3), TwoInputs()])
def test_another_reason_is_not_taken_for_that(model):
    with pytest.raises(ModelError, match=r"the model itself fails on \(16, 4\)") as caught:
        Reference(model, (rows(),))
    assert "one sample" not in str(caught.value)
