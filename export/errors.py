"""What can go wrong with a file, and the import of the packages that a bare install lacks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fused_loss.export.report import VerificationReport


class OnnxExportError(RuntimeError):
    """The model could not be written as ONNX, or is not one that this package exports."""


class ModelError(OnnxExportError):
    """The model itself fails on the rows that it is given."""


class OnnxLoadError(RuntimeError):
    """A file that onnxruntime does not load, or that does not have two outputs."""


class OnnxVerificationError(RuntimeError):
    """onnxruntime and PyTorch disagree about the file, or it cannot be run.

    Attributes:
        report: Everything that was compared, the passing cases included.
    """

    def __init__(self, report: VerificationReport) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        """The first failures, what was allowed, and a hint."""
        return self.report.failure()


class UsageError(ValueError):
    """What a command line names does not exist, or cannot be meant."""


@contextmanager
def as_usage(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds are the command line's fault.

    Raises:
        UsageError: One of them, with its own words.
    """
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error


class MissingDependencyError(ImportError):
    """A package of an optional extra is not installed; the message names the extra."""


def require(module: str, extra: str = "export") -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingDependencyError: It is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{package} is needed and cannot be imported ({error}): "
            f"pip install 'fused-loss[{extra}]'",
            name=package,
        ) from error
