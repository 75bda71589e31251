"""What a model file must be before onnxruntime sees it: whole, unchanged, and at home.

Nothing of the file is run or followed here. External data must be a regular file of its own beside
the model: onnxruntime checks the name and follows hard links, onnx checks those too, and neither
notices that the bytes have changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.files import needed
from fused_loss.export.outline import Outline, StoredTensor, mapped, read_outline
from fused_loss.export.seal import KEY, PREFIX, broken_seal, digest


@dataclass(frozen=True)
class Admitted:
    """A file that may be loaded.

    Attributes:
        path: The file itself, where a link was given.
        metadata: Its metadata.
        external: The files that hold some of its weights.
        sha256: Of its bytes.
        operators: The types of its nodes, those of inner graphs included.
        broken: Why it is not what was written; empty where it is, or is not sealed.
    """

    path: Path
    metadata: dict[str, str]
    external: tuple[Path, ...]
    sha256: str
    operators: frozenset[str] = frozenset()
    broken: str = ""

    @property
    def is_sealed(self) -> bool:
        """Whether it carries digests, and they hold."""
        return KEY in self.metadata and not self.broken


def admitted(path: Path, sha256: str | None = None) -> Admitted:
    """The file, if it may be loaded; `sha256` is that of the only file wanted.

    Raises:
        FileNotFoundError: No file at `path`.
        OnnxLoadError: It is not a model, names external data that is not its own, has changed, or
            is another one than is wanted.
    """
    found = examined(path, sha256)
    if found.broken:
        raise OnnxLoadError(
            f"{path.name} is not what was exported: {found.broken}. Export it again, or take the "
            f"entries {PREFIX}* out of its metadata if it was changed on purpose"
        )
    return found


def examined(path: Path, sha256: str | None = None) -> Admitted:
    """As `admitted`, with a broken seal in the result.

    Raises:
        FileNotFoundError, OnnxLoadError: As `admitted`.
        TypeError: `sha256` is no text.
    """
    if sha256 is not None and not isinstance(sha256, str):
        raise TypeError(f"sha256 must be a str of hex digits, got {type(sha256).__name__}")
    needed(path, FileNotFoundError)
    real = path.resolve()
    with mapped(real) as model:
        outline = read_outline(model, path.name)
        external = external_files(outline, real.parent, path.name)
        found, intact = digest(model)
        broken = broken_seal(intact, outline, real.parent)
    if not broken and sha256 is not None and found != sha256.lower():
        raise OnnxLoadError(
            f"{path.name} is not the file that was asked for: its sha256 is {found}, "
            f"and sha256={sha256!r} is wanted"
        )
    return Admitted(real, outline.metadata, external, found, frozenset(outline.operators), broken)


def external_files(outline: Outline, folder: Path, name: str) -> tuple[Path, ...]:
    """Where external weights lie, each file once.

    Raises:
        OnnxLoadError: Outside `folder`, reached by a link, missing, or too short.
    """
    found: dict[str, Path] = {}
    for tensor in outline.tensors:
        if tensor.external:
            location = tensor.external["location"]
            path = found.setdefault(location, folder / location)
            try:
                problem = _outside(location) or _not_its_own(path, folder)
                problem = problem or _too_short(tensor, path)
            except OSError as error:
                problem = f"which cannot be looked at: {error.strerror}"
            if problem:
                raise OnnxLoadError(
                    f"{name} is not a valid ONNX model: it has weights in {location!r}, {problem}"
                )
    return tuple(found.values())


def _outside(location: str) -> str:
    parts = PurePosixPath(location).parts + PureWindowsPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive
    if absolute or location.startswith("\\") or ".." in parts or "\0" in location:
        return "which is not in the model's folder: it is not opened"
    return ""


def _not_its_own(path: Path, folder: Path) -> str:
    """A link may lead anywhere, and another name of a file lets others change it."""
    if not path.exists() and not path.is_symlink():
        return "which is not there: put it beside the model"
    if path.is_symlink() or path.resolve() != path or folder not in path.parents:
        return "which is a link: it is not followed"
    if not path.is_file():
        return "which is not a regular file"
    if os.stat(path).st_nlink > 1:
        return "which has another name too (a hard link): copy it"
    return ""


def _too_short(tensor: StoredTensor, path: Path) -> str:
    try:
        offset = int(tensor.external.get("offset", 0))
        length = int(tensor.external.get("length", tensor.size or 0))
    except ValueError:
        return "at a place that is not a number"
    if min(offset, length) < 0 or tensor.size not in (None, length):
        return f"{length} bytes at {offset}, and {tensor.name} needs {tensor.size}"
    if offset + length > path.stat().st_size:
        return f"which is cut short: {tensor.name} ends at byte {offset + length}"
    return ""
