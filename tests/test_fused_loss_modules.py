import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from _bad_input import changed
from _public import ALL, batch, device_of
from torch import Tensor, nn

import fused_loss
from fused_loss import (
    CombinedLoss,
    Components,
    DualHead,
    UncertaintyWeightedLoss,
    combined_loss,
    modules,
)

WEIGHT = torch.tensor([0.5, 1.0, 2.0])
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "alpha": {"alpha": 0.25},
    "alpha tensor": {"alpha": torch.tensor(0.25)},
    "alpha parameter": {"alpha": nn.Parameter(torch.tensor(0.25))},
    "pair": {"loss_weights": (0.25, 2.0)},
    "pair tensor": {"loss_weights": torch.tensor([0.25, 2.0])},
    "pair parameter": {"loss_weights": nn.Parameter(torch.tensor([0.25, 2.0]))},
    "the rest": {
        "class_weight": WEIGHT,
        "ignore_index": 1,
        "label_smoothing": 0.25,
        "nan_targets": "ignore",
        "empty": "zero",
        "reduction": "none",
        "return_components": True,
    },
}
MASK = torch.tensor([[True, True, False]])
BATCH: dict[str, dict[str, Any]] = {
    "nothing": {},
    "mask and weights": {
        "class_mask": MASK,
        "regression_weight": torch.ones(4, 1) / 2,
        "classification_weight": torch.tensor([1.0, 0.0, 2.0, 3.0]),
    },
    "normalizers": {"regression_normalizer": 16, "classification_normalizer": torch.tensor(8.0)},
}


def leaves() -> tuple[Tensor, ...]:
    r, z, y, t = batch()
    return r.requires_grad_(), z.requires_grad_(), y, t


def keywords_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_the_options_are_those_of_combined_loss():
    """What changes from batch to batch is an argument of `forward`, and the rest of the module."""
    of_function, batch = keywords_of(combined_loss), BATCH["mask and weights"]
    of_batch = {*batch, *BATCH["normalizers"]}
    assert of_function.keys() - of_batch - {"loss_weights"} == modules.DEFAULTS.keys()
    assert keywords_of(modules._Loss) == modules.DEFAULTS
    assert {name: of_function[name] for name in modules.DEFAULTS} == modules.DEFAULTS
    assert keywords_of(CombinedLoss) == {"loss_weights": None}
    alpha = inspect.signature(CombinedLoss).parameters["alpha"]
    assert alpha.default == inspect.signature(combined_loss).parameters["alpha"].default == 0.5


@pytest.mark.parametrize("copied", ["itself", "deepcopy", "pickle"])
@pytest.mark.parametrize("label", OPTIONS)
@pytest.mark.parametrize("batch_label", BATCH)
def test_a_module_is_its_function(batch_label: str, label: str, copied: str):
    options, of_batch = OPTIONS[label], BATCH[batch_label]
    if batch_label == "normalizers" and options.get("reduction") == "none":
        with pytest.raises(ValueError, match=r"regression_normalizer .* reduction='none'"):
            CombinedLoss(**options)(*leaves(), **of_batch)
        return
    module = CombinedLoss(**options)
    if copied == "deepcopy":
        module = copy.deepcopy(module)
    elif copied == "pickle":
        module = pickle.loads(pickle.dumps(module))
    r, z, y, t = leaves()
    y[0, 0] = torch.nan if options.get("nan_targets") else 0.0
    loss = module(r, z, y, t, **of_batch)
    expected = combined_loss(r, z, y, t, **options, **of_batch)
    if options.get("return_components"):
        assert type(loss[1]) is Components
        pairs = zip((loss[0], *loss[1]), (expected[0], *expected[1]), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
        loss, expected = loss[0], expected[0]
    assert torch.equal(loss, expected)
    mine = torch.autograd.grad(loss.sum(), (r, z))
    theirs = torch.autograd.grad(expected.sum(), (r, z))
    assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("label", "parameters", "buffers"),
    [
        ("defaults", [], []),
        ("alpha", [], []),
        ("alpha tensor", [], ["alpha"]),
        ("alpha parameter", ["alpha"], []),
        ("pair", [], []),
        ("pair tensor", [], ["loss_weights"]),
        ("pair parameter", ["loss_weights"], []),
        ("the rest", [], ["class_weight"]),
    ],
)
def test_tensors_are_registered_as_they_are_given(label: str, parameters: list, buffers: list):
    module = CombinedLoss(**OPTIONS[label])
    assert [name for name, _ in module.named_parameters()] == parameters
    assert [name for name, _ in module.named_buffers()] == buffers
    assert list(module.state_dict()) == parameters + buffers


def test_a_float_stays_a_float():
    module = CombinedLoss(0.25)
    assert module.alpha == 0.25
    assert isinstance(module.alpha, float)
    assert module.class_weight is None


def test_a_state_dict_goes_round():
    weight = nn.Parameter(torch.tensor(0.25))
    source = CombinedLoss(weight, class_weight=WEIGHT)
    target = CombinedLoss(nn.Parameter(torch.zeros(())), class_weight=torch.zeros(3))
    assert target.load_state_dict(source.state_dict()).missing_keys == []
    inputs = batch()
    assert torch.equal(target(*inputs), source(*inputs))
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*class_weight"):
        target.load_state_dict({"alpha": weight.detach()})


def test_a_module_moves_with_its_tensors():
    module = CombinedLoss(torch.tensor(0.25), class_weight=WEIGHT)
    assert module.to(torch.float64).alpha.dtype == torch.float64
    assert module.class_weight.dtype == torch.float64
    loss = module(*batch())
    assert loss.dtype == torch.float32  # neither alpha nor the class weights promote
    assert torch.equal(loss, combined_loss(*batch(), 0.25, class_weight=WEIGHT))
    module.to("meta")
    assert module.alpha.device.type == module.class_weight.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "alpha=0.5"),
        ({"alpha": 0.25}, "alpha=0.25"),
        ({"alpha": 1}, "alpha=1"),
        ({"alpha": torch.tensor(0.25)}, "alpha=Tensor()"),
        ({"alpha": nn.Parameter(torch.tensor(0.25))}, "alpha=Parameter()"),
        ({"loss_weights": (0.25, 2.0)}, "loss_weights=(0.25, 2.0)"),
        ({"loss_weights": torch.ones(2)}, "loss_weights=Tensor(2,)"),
        (
            {"class_weight": WEIGHT, "ignore_index": 1, "label_smoothing": 0.1},
            "alpha=0.5, class_weight=Tensor(3,), ignore_index=1, label_smoothing=0.1",
        ),
        (
            {"reduction": "none", "return_components": True},
            "alpha=0.5, reduction='none', return_components=True",
        ),
        (
            {"nan_targets": "ignore", "empty": "zero", "inplace_gradient": True},
            "alpha=0.5, nan_targets='ignore', empty='zero', inplace_gradient=True",
        ),
    ],
)
def test_repr_shows_the_weighting_and_what_is_not_default(options: dict, expected: str):
    module = CombinedLoss(**options)
    assert module.extra_repr() == expected
    assert repr(module) == f"CombinedLoss({expected})"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": "0.5"}, TypeError, "alpha must be a float or a 0-d tensor, got str"),
        ({"alpha": torch.ones(2)}, ValueError, r"alpha must be .* got shape \(2,\)"),
        ({"alpha": 0.5, "loss_weights": (1, 1)}, ValueError, "give only one of them"),
        ({"loss_weights": (1, 1, 1)}, ValueError, r"loss_weights must be \(w_reg, w_cls\)"),
        ({"loss_weights": torch.ones(3)}, ValueError, r"loss_weights must be .* got \(3,\)"),
        ({"class_weight": nn.Parameter(WEIGHT)}, ValueError, "class_weight takes no gradient"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing must lie in"),
        ({"nan_targets": "skip"}, ValueError, "nan_targets must be one of"),
        ({"empty": None}, ValueError, "empty must be one of"),
        ({"inplace_gradient": "yes"}, TypeError, "inplace_gradient must be a bool"),
    ],
)
def test_a_module_without_a_meaning_is_not_built(options: dict, error: type, message: str):
    with pytest.raises(error, match=message) as caught:
        CombinedLoss(**options)
    assert caught.type is error


@pytest.mark.parametrize("backend", ALL)
def test_bad_tensors_are_named_by_forward_too(backend: str):
    arguments = changed(device_of(backend), regression_targets=torch.zeros(4, 1))
    with (
        fused_loss.backend(backend),
        pytest.raises(ValueError, match=r"regression_targets has shape \(4, 1\)"),
    ):
        CombinedLoss()(**arguments)


def dual_head(outputs: int = 1) -> DualHead:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    return DualHead(trunk, nn.Linear(8, outputs), nn.Linear(8, 3))


def test_dual_head_gives_a_flat_tuple():
    model = dual_head(2)
    x = torch.randn(4, 5)
    result = model(x)
    assert type(result) is tuple
    features = model.trunk(x)
    assert torch.equal(result[0], model.regression_head(features))
    assert torch.equal(result[1], model.classification_head(features))
    assert [name for name, _ in model.named_children()] == [
        "trunk",
        "regression_head",
        "classification_head",
    ]


@pytest.mark.parametrize("backend", ALL)
def test_training_learns_both_heads(backend: str):
    device = device_of(backend)
    model = dual_head().to(device)
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(1)).to(device)
    y, t = x[:, :1] - x[:, 1:2], x[:, 2:].argmax(1)
    criterion = CombinedLoss(nn.Parameter(torch.tensor(0.5)), return_components=True).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    history = []
    with fused_loss.backend(backend):
        for _ in range(20):
            optimizer.zero_grad()
            loss, components = criterion(*model(x), y, t)
            loss.backward()
            optimizer.step()
            history.append([float(part) for part in components])
    first, last = history[0], history[-1]
    assert last[0] < first[0] / 2
    assert last[1] < first[1] / 2
    # d loss / d alpha = mse - ce, summed over the steps: a rounding a step
    parts = torch.tensor(history, dtype=torch.float64)  # (steps, 2)
    expected = (parts[:, 0] - parts[:, 1]).sum()
    allowed = torch.finfo(torch.float32).eps * parts.abs().sum()
    assert (criterion.alpha.grad.double().cpu() - expected).abs() <= allowed


@pytest.mark.parametrize("kind", [CombinedLoss, UncertaintyWeightedLoss])
def test_it_says_where_an_option_belongs(kind):
    with pytest.raises(
        TypeError, match=f"^{kind.__name__} got an .* 'class_mask': it belongs to a"
    ):
        kind(class_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=f"^{kind.__name__} got an unexpected argument 'gamma'$"):
        kind(gamma=2)
    with pytest.raises(TypeError, match="'class_weight': it is fixed in the constructor"):
        kind()(*batch(), class_weight=torch.ones(3))
    with pytest.raises(TypeError, match=f"call of {kind.__name__} got an .* 'gamma'$"):
        kind()(*batch(), gamma=2)


def test_numbers_of_numpy():
    """What counting labels gives, say."""
    inputs = batch()
    found = combined_loss(*inputs, np.float32(0.25), classification_normalizer=np.int64(3))
    assert torch.equal(found, combined_loss(*inputs, 0.25, classification_normalizer=3.0))
    with pytest.raises(TypeError, match="alpha must be a float or a 0-d tensor, got bool"):
        combined_loss(*inputs, np.bool_(True))


def test_numbers_of_numpy_in_a_compiled_module():
    criterion = CombinedLoss(
        np.float32(0.25), ignore_index=np.int64(3), label_smoothing=np.float32(0.5)
    )
    assert repr(criterion) == "CombinedLoss(alpha=0.25, ignore_index=3, label_smoothing=0.5)"
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*batch()), criterion(*batch()))
