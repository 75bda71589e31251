"""What the outputs of a file are: which is which head, their classes and their unit.

An export writes this into the metadata as JSON; a file of another exporter has two outputs, the
regression first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fused_loss.export.errors import OnnxLoadError
from fused_loss.export.seal import PREFIX
from fused_loss.export.signature import OUTPUT_NAMES

REGRESSION, CLASSIFICATION = "regression", "classification"
PROBABILITIES, LABEL = "probabilities", "label"


@dataclass(frozen=True)
class Meaning:
    """The roles of the outputs.

    Attributes:
        regression: The name of that output, (N, *).
        classification: The name of the logits or of the probabilities, (N, C, *).
        label: The name of the index of the class, (N, *); empty where the file has none.
        class_names: One a class, in their order; empty where they are not known.
        units: Of the regression head's values: one for all of them, one each, or none.
    """

    regression: str
    classification: str
    label: str = ""
    class_names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, str]:
        """Regression, then classification."""
        return self.regression, self.classification


def read_meaning(metadata: Mapping[str, str], outputs: Sequence[str], file: str) -> Meaning:
    """The meaning of these outputs; `file` is what an error calls the model.

    Raises:
        OnnxLoadError: The outputs are not two heads, or the metadata is not what an export writes.
    """
    found = {key: _json(metadata, key, file) for key in ("roles", "class_names", "unit")}
    roles = found["roles"] or _roles_by_position(outputs)
    units = found["unit"] or ()
    named = Meaning(
        regression=roles.get(REGRESSION, ""),
        classification=roles.get(CLASSIFICATION, roles.get(PROBABILITIES, "")),
        label=roles.get(LABEL, ""),
        class_names=tuple(found["class_names"] or ()),
        units=(units,) if isinstance(units, str) else tuple(units),
    )
    for name in (*named.heads, *filter(None, [named.label])):
        if name not in outputs:
            raise OnnxLoadError(
                f"{file} has outputs {tuple(outputs)}: regression and classification are needed"
            )
    return named


def entries(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What an export has written, by the part of its key after the prefix; JSON where it is."""
    found = {}
    for key, value in metadata.items():
        if key.startswith(PREFIX):
            try:
                found[key.removeprefix(PREFIX)] = json.loads(value)
            except (ValueError, RecursionError):
                found[key.removeprefix(PREFIX)] = value
    return found


def _roles_by_position(outputs: Sequence[str]) -> dict[str, str]:
    if len(outputs) != 2:
        return {}
    names = OUTPUT_NAMES if tuple(outputs) == OUTPUT_NAMES[::-1] else outputs
    return dict(zip((REGRESSION, CLASSIFICATION), names, strict=True))


def _json(metadata: Mapping[str, str], key: str, file: str) -> Any:
    """A JSON object of strings (roles), a list of strings, or a string; None where it is absent."""
    text = metadata.get(PREFIX + key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    parts = list(value.values()) if isinstance(value, dict) else value
    strings = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
    fits = isinstance(value, dict) if key == "roles" else not isinstance(value, dict)
    if not (fits and (strings or (key == "unit" and isinstance(value, str)))):
        raise OnnxLoadError(f"{file} says {PREFIX}{key} = {text[:60]!r}, which is not understood")
    return value
