"""Which of the tensors that `forward` returns is which head, from their names or their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fused_loss.export.errors import OnnxExportError
from fused_loss.export.signature import HEADS, LOSS

Layout = dict[str, str]  # role -> the path of its tensor: "price", "heads.price", "0"

# What a head is called where nothing is declared.
KNOWN = {head: (head, f"{head}_output", f"{head}_head") for head in HEADS}
WRAP = "wrap the model in a module that returns (regression, classification)"


def as_roles(given: Mapping[str, str | int] | None) -> Layout:
    """What the user declares, checked.

    Raises:
        TypeError: Not a mapping of texts to texts or whole numbers.
        ValueError: Not a role, or one tensor twice.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"roles must map regression, classification or loss, got {given!r}")
    unknown = [role for role in given if role not in (*HEADS, LOSS)]
    if unknown:
        raise ValueError(f"roles must be regression, classification or loss, got {unknown}")
    if any(isinstance(path, bool) or not isinstance(path, (str, int)) for path in given.values()):
        raise TypeError(f"roles must name tensors or give their positions, got {dict(given)}")
    declared = {role: str(path) for role, path in given.items()}
    if len(set(declared.values())) < len(declared):
        raise ValueError(f"roles gives one tensor two roles: {declared}")
    return declared


def tensors_of(outputs: Any) -> dict[str, Any]:
    """Path to value, flat; what is None is left out. A bare tensor is "0"."""
    if not _children(outputs):
        return {"0": outputs}
    return dict(_walk(outputs, ""))


def picked(outputs: Any, layout: Layout) -> tuple[Tensor, ...]:
    """The tensors of the roles, in the layout's order.

    Raises:
        OnnxExportError: One is not there: `forward` does not always return the same.
    """
    found = tensors_of(outputs)
    missing = [path for path in layout.values() if path not in found]
    if missing or len(found) != len(layout):
        raise OnnxExportError(
            f"forward returned {list(layout.values())} and now {list(found)}: "
            "it must always return the same tensors"
        )
    return tuple(found[path] for path in layout.values())


def layout_of(
    outputs: Any, declared: Mapping[str, str], output_names: Sequence[str] = ()
) -> Layout:
    """The role of each tensor.

    What is declared comes first. Then a tuple or list goes by position, regression first; a named
    tuple, dataclass or dict by the names in `KNOWN`, or by `output_names` where it has both.

    Raises:
        OnnxExportError: A head is missing or ambiguous, or there is an output without a role.
    """
    found = tensors_of(outputs)
    strange = {path: type(value).__name__ for path, value in found.items() if not _tensor(value)}
    if strange:
        raise OnnxExportError(f"forward must return tensors, and {_listed(strange)}: {WRAP}")
    for role, path in declared.items():
        if path not in found:
            raise OnnxExportError(f"roles names {path!r} as {role}, forward returns {list(found)}")
    layout = {role: declared[role] for role in (*HEADS, LOSS) if role in declared}
    rest = [path for path in found if path not in declared.values()]
    if not (list(layout) == [LOSS] and not rest):  # a model that is the loss alone
        layout = _completed(layout, rest, output_names, _named(outputs))
    extra = [path for path in found if path not in layout.values()]
    if extra:
        raise OnnxExportError(
            f"forward returns {len(found)} tensors, and {extra} is neither head: {WRAP}, or "
            f"declare it, roles={{'{LOSS}': {extra[0]!r}}}, if it is the loss"
        )
    return {role: layout[role] for role in (*HEADS, LOSS) if role in layout}


def _completed(layout: Layout, rest: list[str], names: Sequence[str], named: bool) -> Layout:
    """`layout` and the heads that it lacks, from `rest`."""
    lacking = [head for head in HEADS if head not in layout]
    if not named:
        if len(rest) < len(lacking):
            raise OnnxExportError(
                f"forward must return two heads, (regression, classification), got "
                f"{len(rest) + len(layout)} tensor(s): {WRAP}"
            )
        return layout | dict(zip(lacking, rest, strict=False))
    if len(names) == len(HEADS) and set(names) <= set(rest):
        return layout | dict(zip(HEADS, names, strict=True))
    for head in lacking:
        candidates = [path for path in rest if path.rpartition(".")[2] in KNOWN[head]]
        if len(candidates) != 1:
            raise OnnxExportError(
                f"forward returns {rest}, and the {head} head is not one of them by name: declare "
                f"it, roles={{'{head}': name}}"
            )
        layout = layout | {head: candidates[0]}
    return layout


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = _children(value)
    if not children and value is not None:
        yield path, value
    for key, child in children.items():
        yield from _walk(child, f"{path}.{key}" if path else str(key))


def _children(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): child for key, child in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return {str(i): child for i, child in enumerate(value)}
    return {}


def _named(outputs: Any) -> bool:
    """Whether there is a name on the way to any of the tensors."""
    return any(not key.isdecimal() for path in tensors_of(outputs) for key in path.split("."))


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _listed(strange: Mapping[str, str]) -> str:
    return ", ".join(f"{path} is a {kind}" for path, kind in strange.items())
