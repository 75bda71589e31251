"""Where a command line's model comes from: a factory, and a checkpoint of its weights.

The factory is the user's own code and is run; a checkpoint holds tensors and nothing that runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fused_loss.export.errors import OnnxExportError, UsageError, require
from fused_loss.export.files import needed


def load_model(spec: str) -> nn.Module:
    """The module that `package.module:factory` names, or makes when it is called.

    It is looked up in the current folder first, as by `python -m`.

    Raises:
        UsageError: No such module or name, or it gives something else than an `nn.Module`.
        OnnxExportError: The user's code raises.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{spec!r} must be package.module:factory")
    with _current_folder():
        found = _imported(module_name)
        for part in name.split("."):
            if not hasattr(found, part):
                raise UsageError(f"{module_name} has no {name!r}")
            found = getattr(found, part)
        if callable(found) and not isinstance(found, nn.Module):
            try:
                found = found()
            except (Exception, SystemExit) as error:
                raise OnnxExportError(f"{spec} raises {_named(error)}") from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"{spec} gives {type(found).__name__}, a torch.nn.Module is needed")
    return found


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict, all of it, from `.safetensors` or a weights-only `.pt`.

    The prefixes of `torch.compile` and `DataParallel` are dropped. Tied weights need be there once.

    Raises:
        UsageError: No such file.
        OnnxExportError: Not a state dict, or not this model's.
        MissingDependencyError: safetensors is not installed.
    """
    needed(path)
    own = model.state_dict()
    known = {_bare(key): key for key in own}
    state = _without_module({_bare(key): value for key, value in _read(path).items()}, known)
    given = {known.get(key, key): value for key, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise OnnxExportError(f"{path.name} does not fit the model: {error}") from error
    loaded = {own[key].data_ptr() for key in given if key in own}
    missing = [key for key in missing if own[key].data_ptr() not in loaded]
    if missing or unexpected:
        raise OnnxExportError(
            f"{path.name} does not fit the model: it lacks {missing or 'nothing'} "
            f"and has {list(unexpected) or 'nothing'} beside"
        )


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules are found where the user stands; only the user's own are imported meanwhile."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may set the path as it likes
            sys.path.remove(here)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a script may leave at its end
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if (missing and f"{name}.".startswith(f"{missing}.")) or name.startswith("."):
            mend = ": write it as after `import`, without .py" if name.endswith(".py") else ""
            raise UsageError(f"there is no module {name!r} here or installed{mend}") from error
        raise OnnxExportError(f"importing {name} fails: {_named(error)}") from error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            loaded = require("safetensors.torch").load_file(str(path))
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:
        raise OnnxExportError(
            f"{path.name} is not a file of tensors alone ({type(error).__name__}): write it with "
            "torch.save(model.state_dict(), path) or safetensors.torch.save_file"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        keys = list(loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise OnnxExportError(
            f"{path.name} holds {keys}, a state dict is needed: "
            "save model.state_dict() in a file of its own"
        )
    return dict(loaded)


def _without_module(state: dict[str, Tensor], known: Mapping[str, str]) -> dict[str, Tensor]:
    wrapped = all(key.startswith("module.") for key in state)
    if wrapped and not any(key.startswith("module.") for key in known):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _bare(key: str) -> str:
    return key.replace("_orig_mod.", "")
