import importlib
import sys
import textwrap

import pytest
import torch
from _export import mlp
from torch import nn

from fused_loss.export.errors import MissingDependencyError, OnnxExportError, UsageError
from fused_loss.export.sources import load_checkpoint, load_model

FACTORIES = """
    import helper_of_sources
    from torch import nn

    def make():
        import late_helper_of_sources
        return nn.Linear(4, 3)

    class Zoo:
        small = nn.Linear(2, 2)

    def fails():
        raise KeyError("no such thing")

    def leaves():
        raise SystemExit

    def nothing():
        return {"a": 1}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with modules in it; what is imported from it is forgotten after."""
    monkeypatch.chdir(tmp_path)
    files = {
        "factories_of_sources.py": textwrap.dedent(FACTORIES),
        "helper_of_sources.py": "",
        "late_helper_of_sources.py": "",
        "broken_of_sources.py": "1 / 0",
        "needs_of_sources.py": "import no_such_package",
        "script_of_sources.py": "import sys; sys.exit(0)",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = sys.path.copy()
    yield tmp_path
    assert sys.path == before
    for name in [name for name in sys.modules if name.endswith("_of_sources")]:
        del sys.modules[name]


@pytest.mark.usefixtures("here")
def test_a_factory_is_called_and_a_module_is_taken():
    assert isinstance(load_model("factories_of_sources:make"), nn.Linear)
    assert load_model("factories_of_sources:Zoo.small").in_features == 2
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("factories_of_sources", UsageError, "must be package.module:factory"),
        (":make", UsageError, "must be package.module:factory"),
        ("factories_of_sources:", UsageError, "must be package.module:factory"),
        ("no_such_module.x:make", UsageError, "there is no module 'no_such_module.x' here"),
        ("factories_of_sources.py:make", UsageError, "here or installed: .* without .py"),
        ("./factories_of_sources.py:make", UsageError, "here or installed: .* without .py"),
        ("factories_of_sources:nope", UsageError, "factories_of_sources has no 'nope'"),
        ("factories_of_sources:nothing", UsageError, "gives dict, a torch.nn.Module is needed"),
        ("factories_of_sources:fails", OnnxExportError, "raises KeyError: 'no such thing'"),
        ("factories_of_sources:leaves", OnnxExportError, "raises SystemExit"),
        ("broken_of_sources:x", OnnxExportError, "importing .* fails: ZeroDivisionError"),
        ("needs_of_sources:x", OnnxExportError, "No module named 'no_such_package'"),
        ("script_of_sources:x", OnnxExportError, "importing .* fails: SystemExit"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_gives_no_model_is_named(spec, error, said):
    with pytest.raises(error, match=said):
        load_model(spec)


def saved(folder, state, suffix=".pt"):
    path = folder / f"w{suffix}"
    if suffix == ".safetensors":
        importlib.import_module("safetensors.torch").save_file(state, path)
    else:
        torch.save(state, path)
    return path


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in mlp().state_dict().items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_a_state_dict_is_loaded_whatever_wrapped_the_model(tmp_path, prefix, suffix):
    model = mlp(seed=1)
    load_checkpoint(model, saved(tmp_path, prefixed(prefix), suffix))
    assert all(map(torch.equal, model.parameters(), mlp().parameters()))


def test_a_compiled_submodule_and_one_called_module_keep_their_names(tmp_path):
    model = nn.ModuleDict({"module": torch.compile(nn.Linear(2, 2))})
    state = {"module.weight": torch.ones(2, 2), "module.bias": torch.ones(2)}
    load_checkpoint(model, saved(tmp_path, state))
    assert all(bool((p == 1).all()) for p in model.parameters())


def test_tied_weights_need_be_there_once(tmp_path):
    def tied(seed):
        model = mlp(seed)
        model.classification_head.weight = model.regression_head.weight
        return model

    state = tied(0).state_dict()
    del state["classification_head.weight"]
    model = tied(1)
    load_checkpoint(model, saved(tmp_path, state, ".safetensors"))
    assert torch.equal(model.classification_head.weight, tied(0).regression_head.weight)


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def without(name):
    state = mlp().state_dict()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: without("trunk.0.bias"), r"it lacks \['trunk.0.bias'\] and has nothing beside"),
        (
            lambda: mlp().state_dict() | {"x": torch.ones(1)},
            r"lacks nothing and has \['x'\] beside",
        ),
        (lambda: mlp().state_dict() | {"trunk.0.bias": torch.ones(2)}, "size mismatch for trunk.0"),
        (lambda: {"model": mlp().state_dict(), "epoch": 3}, r"holds \['model', 'epoch'\], a state"),
        (lambda: torch.ones(3), "holds Tensor, a state dict is needed"),
        (mlp, "w.pt is not a file of tensors alone .*torch.save"),
        (lambda: {"a": Evil()}, "w.pt is not a file of tensors alone"),
    ],
)
def test_what_is_no_state_dict_of_the_model_is_named(tmp_path, content, said, capsys):
    with pytest.raises(OnnxExportError, match=said):
        load_checkpoint(mlp(), saved(tmp_path, content()))
    assert "unpickled" not in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*w\.pt"):
        load_checkpoint(mlp(), tmp_path / "w.pt")
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 9)
        with pytest.raises(OnnxExportError, match=f"{name} is not a file of tensors alone"):
            load_checkpoint(mlp(), tmp_path / name)


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path, mlp().state_dict(), ".safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        MissingDependencyError, match=r"safetensors is needed .*fused-loss\[export\]"
    ):
        load_checkpoint(mlp(), path)
