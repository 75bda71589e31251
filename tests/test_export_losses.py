"""Losses as ONNX nodes: one export of many of them, and whole models that contain one."""

from contextlib import nullcontext
from itertools import product

import onnx
import pytest
import torch
import torch.nn.functional as F
from _export import CLASSES, mlp, rows
from torch import nn

from fused_loss import CombinedLoss, combined_loss
from fused_loss.export import OnnxExportError, export_onnx, verify_onnx
from fused_loss.export.losses import ComposedLosses, composed_cross_entropy

WEIGHT = torch.tensor([0.5, 1.0, 2.0])
OPTIONS = [
    {"weight": weight, "label_smoothing": smoothing, "reduction": reduction}
    for weight, smoothing, reduction in product((None, WEIGHT), (0.0, 0.1), ("none", "mean", "sum"))
]


def inputs(count, seed=0, dtype=torch.float64):
    """Logits and targets of every kind: over samples, over positions, of one sample."""
    generator = torch.Generator().manual_seed(seed)
    flat, deep = torch.randn(2, count, CLASSES, 5, generator=generator, dtype=dtype)
    index = torch.randint(CLASSES, (count, 5), generator=generator)
    index[0, 0] = -100  # ignored
    soft = torch.rand(deep.shape, generator=generator, dtype=dtype)
    for logits, indices, probabilities in (
        (flat[..., 1], index[:, 1], soft[..., 1]),
        (deep, index, soft),
        (flat[0, :, 0], index[0, 1], soft[0, :, 0]),
    ):
        yield logits, indices
        yield logits, probabilities


@pytest.mark.parametrize("options", OPTIONS)
def test_the_composition_is_cross_entropy(options):
    weight = options["weight"] if options["weight"] is None else options["weight"].double()
    for logits, target in inputs(7):
        for ignore_index in (-100, 1)[: 1 + (not target.is_floating_point())]:
            if ignore_index == 1:
                target = target.where(target >= 0, 1)
            given = {**options, "weight": weight, "ignore_index": ignore_index}
            wanted = F.cross_entropy(logits, target, **given)
            found = composed_cross_entropy(logits, target, **given)
            assert found.shape == wanted.shape
            slack = 16 * torch.finfo(torch.float64).eps * (1 + wanted.nan_to_num().abs().max())
            assert torch.allclose(found, wanted, rtol=0, atol=slack.item(), equal_nan=True)


def test_the_deprecated_arguments_and_the_mean_of_nothing():
    logits, index = rows(3, CLASSES), torch.full((3,), -100)
    assert composed_cross_entropy(logits, index).isnan()
    assert composed_cross_entropy(logits, index, size_average=False) == 0
    assert composed_cross_entropy(logits, index, reduce=False).shape == (3,)


def test_within_the_block_alone_the_function_is_replaced():
    logits, index = rows(3, CLASSES), torch.tensor([0, 1, 2])
    names = {}
    for name, around in (("plain", nullcontext), ("composed", ComposedLosses)):
        with around(), torch.profiler.profile() as profile:
            nn.CrossEntropyLoss()(logits, index)
        names[name] = {event.name for event in profile.events()}
    assert "aten::cross_entropy_loss" in names["plain"]
    assert "aten::cross_entropy_loss" not in names["composed"]


class Trained(nn.Module):
    """A model with its loss, as some are trained."""

    def __init__(self, loss):
        super().__init__()
        self.model, self.loss = mlp(), loss

    def forward(self, x, y, t):
        regression, classification = self.model(x)
        return {
            "loss": self.loss(regression, classification, y, t),
            "regression": regression,
            "classification": classification,
        }


NAMES = ("x", "y", "t")
INDEX = torch.arange(16) % CLASSES
SOFT = rows(16, CLASSES).softmax(1)
FUSED = {
    "weights, smoothing and indices": (
        lambda: CombinedLoss(0.3, class_weight=WEIGHT, label_smoothing=0.1),
        INDEX,
    ),
    "soft targets, a sample each": (
        lambda: CombinedLoss(torch.tensor(0.7), label_smoothing=0.2, reduction="none"),
        SOFT,
    ),
    "ignored": (
        lambda: lambda *args: combined_loss(*args, ignore_index=1, reduction="sum"),
        INDEX,
    ),
    "PyTorch's own": (
        lambda: (
            lambda r, z, y, t: F.mse_loss(r, y) + F.cross_entropy(z, t, WEIGHT, label_smoothing=0.1)
        ),
        INDEX,
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_declared_loss_is_a_verified_output(tmp_path, name):
    make, targets = FUSED[name]
    path, example = tmp_path / "m.onnx", (rows(), rows(16, 3), targets)
    options = {"input_names": NAMES, "roles": {"loss": "loss"}}
    report = export_onnx(Trained(make()), example, path, **options).report
    assert list(report.outputs) == ["regression_output", "classification_output", "loss"]
    assert all(c.passed for c in report.comparisons)
    assert {c.output for c in report.comparisons if c.error} >= {"loss"}
    standard = {node.domain for node in onnx.load(path).graph.node}
    assert standard == {""}
    assert verify_onnx(path, Trained(make()), example, **options).passed


class LossAlone(Trained):
    def forward(self, x, y, t):
        return super().forward(x, y, t)["loss"]


def test_a_model_may_be_the_loss_alone_if_that_is_declared(tmp_path):
    make, targets = FUSED["weights, smoothing and indices"]
    example = (rows(), rows(16, 3), targets)
    with pytest.raises(OnnxExportError, match=r"two heads, .* got 1 tensor"):
        export_onnx(LossAlone(make()), example, tmp_path / "m.onnx", input_names=NAMES)
    roles = {"loss": 0}
    report = export_onnx(
        LossAlone(make()), example, tmp_path / "m.onnx", input_names=NAMES, roles=roles
    ).report
    assert report.outputs == {"loss": []}


def test_an_undeclared_loss_is_refused_by_name(tmp_path):
    make, targets = FUSED["ignored"]
    example = (rows(), rows(16, 3), targets)
    with pytest.raises(OnnxExportError, match=r"\['loss'\] is neither head"):
        export_onnx(Trained(make()), example, tmp_path / "m.onnx", input_names=NAMES)
