import pytest
import torch
from _export import mlp, rows
from torch import nn

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.evaluation import evaluation_copy


def test_every_submodule_of_the_copy_is_in_eval_mode_and_none_of_the_model_is_touched():
    model = mlp().train()
    model.regression_head.eval()
    model.trunk[0].weight.requires_grad_(False)
    copied = evaluation_copy(model)
    assert not any(module.training for module in copied.modules())
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert [m.training for m in (model, model.trunk[2], model.regression_head)] == [
        True,
        True,
        False,
    ]
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    own = {p.data_ptr() for p in model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in copied.parameters())
    assert all(map(torch.equal, copied.parameters(), model.parameters()))


def half_compiled():
    model = mlp()
    model.trunk = torch.compile(model.trunk)
    return model


def kept():
    """A tensor of an earlier forward on the module, which deepcopy refuses."""
    model = mlp()
    model.trunk.hidden = model.trunk(rows())
    return model


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: torch.compile(mlp()),
        lambda: nn.DataParallel(mlp()),
        lambda: nn.DataParallel(torch.compile(mlp())),
        lambda: torch.compile(nn.DataParallel(mlp())),
        half_compiled,
        kept,
    ],
)
def test_wrappers_are_taken_off(wrapped):
    copied = evaluation_copy(wrapped())
    assert [type(m) for m in copied.modules()] == [type(m) for m in mlp().modules()]
    expected = mlp().state_dict()
    assert list(copied.state_dict()) == list(expected)
    assert all(torch.equal(copied.state_dict()[name], expected[name]) for name in expected)


def test_tied_weights_stay_tied():
    model = mlp()
    model.classification_head.weight = model.regression_head.weight
    copied = evaluation_copy(model)
    assert copied.classification_head.weight is copied.regression_head.weight


class NoCopy(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("not this one")


def with_nan():
    model = mlp()
    with torch.no_grad():
        model.regression_head.bias[1] = torch.nan
    return model


def with_infinite_buffer():
    model = mlp()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    return model


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (lambda: mlp().forward, TypeError, "got method: pass the module itself"),
        (lambda: torch.jit.trace(nn.ReLU(), rows()), TypeError, "got TopLevelTracedModule"),
        (NoCopy, OnnxExportError, "cannot be copied to the CPU: not this one"),
        (
            lambda: mlp().to(torch.bfloat16),
            OnnxExportError,
            "trunk.0.weight is bfloat16, .*model.float",
        ),
        (with_nan, OnnxExportError, "regression_head.bias holds 1 NaN of 3 values"),
        (lambda: mlp().to("meta"), OnnxExportError, "cannot be copied to the CPU"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_cannot_be_exported_is_named(model, error, said):
    with pytest.raises(error, match=said):
        evaluation_copy(model())


def test_infinities_are_legal():
    assert evaluation_copy(with_infinite_buffer()).mask[1] == -torch.inf


@pytest.mark.gpu
def test_a_model_on_a_gpu_stays_there():
    model = nn.DataParallel(mlp().cuda())
    copied = evaluation_copy(model)
    assert {p.device.type for p in copied.parameters()} == {"cpu"}
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert all(map(torch.equal, copied.parameters(), model.cpu().parameters()))
