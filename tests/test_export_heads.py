from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.heads import as_roles, layout_of, picked, tensors_of

R, C, L = torch.ones(2), torch.ones(2, 3), torch.ones(())


@dataclass
class Output:
    logits: Any
    price: Any
    hidden: Any = None


Named = namedtuple("Named", ["classification", "regression"])
BOTH = {"regression": "0", "classification": "1"}


@pytest.mark.parametrize(
    ("outputs", "roles", "names", "layout"),
    [
        ((R, C), {}, (), BOTH),
        ([R, C], {}, (), BOTH),
        ((R, C, L), {"loss": "2"}, (), {**BOTH, "loss": "2"}),
        ((L, R, C), {"loss": "0"}, (), {"regression": "1", "classification": "2", "loss": "0"}),
        ((C, R), {"classification": "0"}, (), {"regression": "1", "classification": "0"}),
        (L, {"loss": "0"}, (), {"loss": "0"}),
        ({"loss": L}, {"loss": "loss"}, (), {"loss": "loss"}),
        (Named(C, R), {}, (), {"regression": "regression", "classification": "classification"}),
        (
            {"classification_output": C, "regression_output": R},
            {},
            (),
            {"regression": "regression_output", "classification": "classification_output"},
        ),
        (
            Output(C, R),
            {"regression": "price", "classification": "logits"},
            (),
            {"regression": "price", "classification": "logits"},
        ),
        (
            Output(C, R),
            {},
            ("price", "logits"),
            {"regression": "price", "classification": "logits"},
        ),
        (
            {"heads": {"regression": R, "classification": C}},
            {},
            (),
            {"regression": "heads.regression", "classification": "heads.classification"},
        ),
        ((R, (C,)), {}, (), {"regression": "0", "classification": "1.0"}),
    ],
)
def test_which_is_which(outputs, roles, names, layout):
    found = layout_of(outputs, roles, names)
    assert list(found.items()) == list(layout.items())  # in the order of the file
    wanted = {"regression": R, "classification": C, "loss": L}
    for role, tensor in zip(found, picked(outputs, found), strict=True):
        assert tensor is wanted[role]


@pytest.mark.parametrize(
    ("outputs", "roles", "said"),
    [
        (R, {}, r"two heads, \(regression, classification\), got 1 tensor"),
        ((R, C, C), {}, r"returns 3 tensors, and \['2'\] is neither head: .*roles=\{'loss': '2'\}"),
        ({"regression": R, "classification": C, "aux": C}, {}, r"\['aux'\] is neither head"),
        (Output(C, R, C), {"regression": "price", "classification": "logits"}, r"\['hidden'\]"),
        (Output(C, R), {}, r"returns \['logits', 'price'\], and the regression head is not one"),
        ({"regression": R, "regression_output": R, "classification": C}, {}, "regression head is"),
        ((R, "x"), {}, "must return tensors, and 1 is a str: wrap the model"),
        ((R, C), {"loss": "7"}, r"roles names '7' as loss, forward returns \['0', '1'\]"),
    ],
)
def test_what_is_not_two_heads_is_named(outputs, roles, said):
    with pytest.raises(OnnxExportError, match=said):
        layout_of(outputs, roles)


def test_a_forward_that_returns_something_else_next_time_is_named():
    with pytest.raises(OnnxExportError, match=r"returned \['0', '1'\] and now \['0', '1', '2'\]"):
        picked((R, C, L), BOTH)
    assert tensors_of((R, {"a": (C, None)})).keys() == {"0", "1.a.0"}


def test_roles_are_texts_or_positions():
    assert as_roles(None) == {}
    assert as_roles({"loss": 2, "regression": "a.b"}) == {"loss": "2", "regression": "a.b"}


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (["loss"], TypeError, "roles must map"),
        ({"price": "a"}, ValueError, r"roles must be regression, classification or loss, got"),
        ({"loss": 1.5}, TypeError, "must name tensors or give their positions"),
        ({"loss": "a", "regression": "a"}, ValueError, "gives one tensor two roles"),
    ],
)
def test_roles_that_cannot_be_meant_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        as_roles(given)
