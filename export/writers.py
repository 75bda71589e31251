"""Predictions as a table or as arrays: both heads under their names, and the label."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

import numpy as np

from fused_loss.export.runtime import OnnxDualHead


class Writer(Protocol):
    """Takes the outputs of one chunk after another."""

    def write(self, regression: np.ndarray, classification: np.ndarray) -> None:
        """(n, *) and (n, C, *)."""


def labels(classification: np.ndarray) -> np.ndarray:
    """(N, C, *) -> (N, *): the index of the largest logit, -1 where a logit is NaN."""
    return np.where(np.isnan(classification).any(1), -1, classification.argmax(1))


class CsvWriter:
    """A column a regression value, a column a logit, then the label; one line a sample."""

    def __init__(self, file: TextIO, session: OnnxDualHead) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._names = session.output_names
        self._begun = False

    def write(self, regression: np.ndarray, classification: np.ndarray) -> None:
        """Lines for one chunk; numbers are the shortest text that reads back the same."""
        label = labels(classification)
        heads = [_flat(array) for array in (regression, classification, label)]
        if not self._begun:
            self._rows.writerow(_columns(self._names, [head.shape[1] for head in heads]))
            self._begun = True
        texts = [head.astype(str) for head in heads]
        self._rows.writerows(np.concatenate(texts, axis=1).tolist())


class NpzWriter:
    """The outputs under their names, and `label`."""

    def __init__(self, session: OnnxDualHead) -> None:
        self._names = session.output_names
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []

    def write(self, regression: np.ndarray, classification: np.ndarray) -> None:
        """Keep one chunk."""
        self._chunks.append((regression, classification))

    def arrays(self) -> dict[str, Any]:
        """Everything that was written."""
        regression, classification = map(np.concatenate, zip(*self._chunks, strict=True))
        heads = dict(zip(self._names, (regression, classification), strict=True))
        return {**heads, _label(self._names): labels(classification)}


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _columns(names: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    heads = [
        f"{name}_{i}" for name, width in zip(names, widths[:2], strict=True) for i in range(width)
    ]
    label = _label(names)
    return heads + ([label] if widths[2] == 1 else [f"{label}_{i}" for i in range(widths[2])])


def _label(names: tuple[str, ...]) -> str:
    return "predicted_label" if "label" in names else "label"
