"""Weights beside the model file, where protobuf's 2 GiB do not hold them or it is asked for.

The file of weights lies in the model's folder and is named after the model and its own content
(`m.0123456789abcdef.data`): a later export never changes what a copied model reads.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from torch import nn

from fused_loss.export.errors import OnnxExportError

CHOICES = ("auto", "always", "never")
LIMIT = 3 << 29  # 1.5 GiB of weights: protobuf refuses 2 GiB, and needs room to serialise
SMALLEST = 128  # bytes; shapes and other small constants stay in the model file
ALIGNMENT = 64
CHUNK = 1 << 24


@dataclass(frozen=True)
class Record:
    """What the model's metadata says of its file of weights."""

    file: str
    sha256: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def sha256(path: Path) -> str:
    """Of a file of any length."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def lie_outside(
    module: nn.Module, choice: str, *, halved: bool = False, whole: bool = False
) -> bool:
    """Whether the weights of `module` go into a file of their own.

    Args:
        module: The model.
        choice: One of `CHOICES`.
        halved: Whether they are written in half precision.
        whole: Whether there must be one file alone.

    Raises:
        ValueError: Not a choice, or "always" for what must be one file.
        OnnxExportError: They are too large for one file that was asked for.
    """
    if choice not in CHOICES:
        raise ValueError(f"external_data must be one of {', '.join(CHOICES)}, got {choice!r}")
    state = module.state_dict() if isinstance(module, nn.Module) else {}
    size = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in state.values()}.values())
    size = size // 2 if halved else size
    if whole and choice == "always":
        raise ValueError("external_data='always' does not go with quantize, which writes one file")
    if size > LIMIT and (whole or choice == "never"):
        why = "quantize writes one file" if whole else "external_data is 'never'"
        raise OnnxExportError(
            f"the weights take {size / 1e9:.1f} GB and {why}: one .onnx file is a protobuf "
            f"message, which cannot exceed 2 GiB, and more than {LIMIT / 1e9:.1f} GB of weights is "
            "not safe in it. With 'auto' they are written to a file beside it"
        )
    return choice == "always" or (choice == "auto" and size > LIMIT)


class Outside:
    """A file of weights that is removed again when the block raises, unless `keep` was called.

    Args:
        path: Where the model file will be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        target = Path(path).resolve()
        self._folder, self._stem = target.parent, target.stem[:64]
        self._target = target
        self._created: Path | None = None
        self.record: Record | None = None

    def __enter__(self) -> Outside:
        """Nothing is written yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was written for a model that is not there."""
        if error is not None and self._created is not None:
            self._created.unlink(missing_ok=True)

    def take(self, model: Any) -> None:
        """Move the larger initializers of an `onnx_ir.Model` to the file, one at a time.

        Raises:
            OSError: It cannot be written.
        """
        import onnx_ir

        large = list(_large(model))
        if not large:
            return
        temporary = self._folder / f".{self._stem}.{secrets.token_hex(6)}.data"
        try:
            with temporary.open("xb") as file:
                writer = _Writer(file)
                places = [(value, writer.write(value.const_value)) for value in large]
                file.flush()
                os.fsync(file.fileno())
            self.record = self._named(temporary, writer)
        finally:
            temporary.unlink(missing_ok=True)
        for value, (offset, length) in places:
            value.const_value = onnx_ir.ExternalTensor(
                self.record.file,
                offset,
                length,
                value.const_value.dtype,
                shape=value.const_value.shape,
                name=value.name,
                base_dir=self._folder,
            )

    def keep(self) -> None:
        """Whatever happens, the file stays."""
        self._created = None

    def replaced(self, former: str | None) -> None:
        """The model file is in place; `former` was the weights' file of the one that it replaced.

        That one is removed, unless another model in the folder reads it.
        """
        own = self.record and self.record.file
        if former is None or former == own or not former.startswith(f"{self._stem}."):
            return
        old = self._folder / former
        if old.suffix != ".data" or old.parent != self._folder or old.is_symlink():
            return
        others = (path for path in self._folder.glob("*.onnx") if path != self._target)
        if not any(_mentions(path, former.encode()) for path in others):
            old.unlink(missing_ok=True)

    def _named(self, temporary: Path, writer: _Writer) -> Record:
        """Give the file its name, unless one of the same content is there."""
        digest = writer.digest.hexdigest()
        path = self._folder / f"{self._stem}.{digest[:16]}.data"
        if not (path.is_file() and not path.is_symlink() and sha256(path) == digest):
            os.replace(temporary, path)
            self._created = path
        return Record(path.name, digest, writer.length)


class _Writer:
    """Appends tensors at aligned offsets."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.length = file, hashlib.sha256(), 0

    def write(self, tensor: Any) -> tuple[int, int]:
        """The offset and the length of what was written."""
        self._append(bytes(-self.length % ALIGNMENT))
        offset, data = self.length, np.ascontiguousarray(tensor.numpy())
        little = data.astype(data.dtype.newbyteorder("<"), copy=False)
        self._append(little.reshape(-1).view(np.uint8).data)
        return offset, self.length - offset

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.length += len(data)


def _large(model: Any) -> Iterator[Any]:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes >= SMALLEST:
            yield value


def _mentions(path: Path, text: bytes) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0
