"""What a file says of itself, under keys that begin with `fused_loss.`, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fused_loss.export.options import Options
from fused_loss.export.report import VerificationReport
from fused_loss.export.seal import PREFIX, sealed
from fused_loss.export.signature import CLASSIFICATION, Signature
from fused_loss.export.structure import read_structure
from fused_loss.export.weights import Record

PROBABILITIES = "probabilities"


def with_metadata(
    proto: Any,
    signature: Signature,
    options: Options,
    report: VerificationReport | None = None,
    weights: Record | None = None,
    folder: Path = Path(),
) -> bytes:
    """The model file's bytes, sealed; with the measured errors once there is a report.

    `weights` are those of a file in `folder`.
    """
    entries = {PREFIX + key: value for key, value in options.entries()}
    entries[PREFIX + "roles"] = json.dumps(_roles(signature, options))
    if weights is not None:
        entries[PREFIX + "external_data"] = json.dumps(weights.to_dict())
    if report is not None:
        for key in ("versions", "tolerance", "observed_error"):
            entries[PREFIX + key] = json.dumps(getattr(report, key))
    proto.ClearField("metadata_props")
    for key in sorted(entries):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, entries[key]
    return sealed(proto.SerializeToString(deterministic=True), folder)


def recorded(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `with_metadata` wrote, by key without the prefix.

    Raises:
        ValueError: An entry that is not JSON, by its key.
    """
    found = {}
    for key, value in metadata.items():
        name = key.removeprefix(PREFIX)
        if name != key and not name.endswith("sha256"):
            try:
                found[name] = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"the metadata {key} is damaged: {error}") from error
    return found


def weights_file(path: Path) -> str | None:
    """The name of the file of weights of the model at `path`; None without either."""
    if not path.is_file():
        return None
    try:
        return str(recorded(read_structure(path).metadata)["external_data"]["file"])
    except (KeyError, TypeError, ValueError):
        return None


def _roles(signature: Signature, options: Options) -> dict[str, str]:
    """Role to output; the classification output of an export with softmax holds probabilities."""
    replaced = {CLASSIFICATION: PROBABILITIES} if options.softmax else {}
    return {replaced.get(role, role): name for role, name in signature.outputs.items()}
