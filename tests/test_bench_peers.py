"""The peers' adapters, around a cross-entropy of PyTorch's; the peers themselves need a GPU."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from _bench import CPU, SMALL

from fused_loss.bench import PROVIDERS, Phase, peers
from fused_loss.bench.programs import Provider
from fused_loss.bench.providers import eager_loss, from_loss


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, function) -> None:
    """A module of this name whose function is ours."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        made = ModuleType(path)
        made.__path__ = []  # a package
        monkeypatch.setitem(sys.modules, path, made)
    setattr(sys.modules[module], name, function)


ADAPTERS = [
    (peers.liger, "liger_kernel.transformers.functional", "liger_cross_entropy"),
    (peers.quack, "quack.cross_entropy", "cross_entropy"),
    (peers.flag_gems, "flag_gems.fused.cross_entropy_loss", "cross_entropy_loss"),
]


@pytest.mark.parametrize(("adapter", "module", "name"), ADAPTERS, ids=lambda x: str(x)[:20])
def test_an_adapter_makes_the_loss_of_both_heads(adapter, module, name, monkeypatch):
    stand_in(monkeypatch, module, name, F.cross_entropy)
    case = replace(SMALL, class_weight=True, alpha=0.3)
    ours = Provider("peer", from_loss(peers.with_mse(adapter)))
    theirs = Provider("eager", from_loss(eager_loss))
    inputs = case.make(seed=1)
    for phase in (Phase.FORWARD, Phase.TRAINING):
        found, right = (p.program(case, phase, CPU)(inputs) for p in (ours, theirs))
        for a, b in zip(found, right, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("adapter", "fields", "message"),
    [
        (peers.liger, {"soft_targets": True, "ignored": 0.0}, "soft targets"),
        (peers.liger, {"positions": (2,)}, "positions"),
        (peers.quack, {"label_smoothing": 0.1}, "label smoothing"),
    ],
)
def test_what_a_peer_does_not_take_is_named(adapter, fields: dict, message: str):
    with pytest.raises(NotImplementedError, match=message):
        adapter(replace(SMALL, **fields))


@pytest.mark.parametrize("name", ["liger", "quack", "flag-gems"])
def test_a_peer_says_what_to_install(name: str):
    assert "pip install" in (PROVIDERS[name].available(CPU) or "")
