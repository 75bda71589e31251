"""What a file does beside the model: scaling, softmax, label, names, precision; asked for once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fused_loss.export.scaling import Scaling, scaling

DTYPES = ("fp32", "fp16")
QUANTIZE = ("dynamic", "static")


@dataclass(frozen=True)
class Options:
    """The options of one file, checked.

    Attributes:
        dtype: "fp32" or "fp16"; None is the model's own. Inputs and outputs of an "fp16" file stay
            in the model's own dtype: only weights and arithmetic are halved.
        normalize: Name of an input to what it is scaled by, `(x - mean) / std`.
        denormalize: Of the regression output, `y * std + mean`.
        unit: Of the regression output.
        softmax: Whether the classification output holds probabilities.
        label: Whether there is an output `label`, int64: the class of the largest logit.
        class_names: One a class.
        quantize: "dynamic" or "static" for an int8 file.
    """

    dtype: str | None = None
    normalize: Mapping[str, Scaling] = field(default_factory=dict)
    denormalize: Scaling | None = None
    unit: str | None = None
    softmax: bool = False
    label: bool = False
    class_names: tuple[str, ...] | None = None
    quantize: str | None = None

    def entries(self) -> Iterator[tuple[str, str]]:
        """Metadata of the file, without the prefix; only what was asked for."""
        plain: dict[str, Any] = {
            "dtype": self.dtype,
            "normalize": {name: one.to_dict() for name, one in self.normalize.items()} or None,
            "denormalize": self.denormalize and self.denormalize.to_dict(),
            "unit": self.unit,
            "softmax": self.softmax or None,
            "label": self.label or None,
            "class_names": self.class_names and list(self.class_names),
            "quantize": self.quantize,
        }
        for key, value in plain.items():
            if value is not None:
                yield key, json.dumps(value)


def options(
    input_names: Sequence[str],
    *,
    dtype: str | None = None,
    normalize: Mapping[str, Any] | None = None,
    denormalize: Mapping[str, Any] | None = None,
    unit: str | None = None,
    softmax: bool = False,
    label: bool = False,
    class_names: Sequence[str] | None = None,
    quantize: str | None = None,
) -> Options:
    """Check what was asked for.

    Raises:
        TypeError, ValueError: What cannot be meant, by the argument's name.
    """
    _one_of("dtype", dtype, DTYPES)
    _one_of("quantize", quantize, QUANTIZE)
    if dtype == "fp16" and quantize is not None:
        raise ValueError("quantize goes with fp32 alone: leave dtype='fp16' out")
    for name, flag in (("softmax", softmax), ("label", label)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}")
    back, stated = _denormalize(denormalize)
    if unit is not None and stated is not None and unit != stated:
        raise ValueError(f"unit is {unit!r} and denormalize says {stated!r}: give only one of them")
    unit = stated if unit is None else unit
    if unit is not None and not (isinstance(unit, str) and unit.strip()):
        raise TypeError(f"unit must be a text such as 'g', got {unit!r}")
    return Options(
        dtype,
        _normalize(normalize, input_names),
        back,
        unit,
        softmax,
        label,
        _class_names(class_names),
        quantize,
    )


def recorded_options(
    record: Mapping[str, Any], input_names: Sequence[str], given: Mapping[str, Any]
) -> Options:
    """The options that a file records of itself, under those that are given and not None.

    Raises:
        TypeError, ValueError: What cannot be meant, by the argument's name.
    """
    known = {name: record[name] for name in Options.__dataclass_fields__ if name in record}
    asked = {name: value for name, value in given.items() if value is not None}
    return options(input_names, **known | asked)


def _one_of(argument: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{argument} must be one of {', '.join(known)}, got {value!r}")


def _normalize(given: Mapping[str, Any] | None, input_names: Sequence[str]) -> dict[str, Scaling]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"normalize must be a mapping with mean and std, got {given!r}")
    if "mean" in given or "std" in given:
        if len(input_names) > 1:
            raise ValueError(
                f"normalize must name an input: {{name: {{mean, std}}}} of {input_names}"
            )
        given = {input_names[0]: given}
    unknown = [name for name in given if name not in input_names]
    if unknown or not given:
        raise ValueError(
            f"normalize must hold mean and std, or map inputs to them: it holds {list(given)}, "
            f"the inputs are {list(input_names)}"
        )
    return {name: scaling(f"normalize of {name}", one) for name, one in given.items()}


def _denormalize(given: Mapping[str, Any] | None) -> tuple[Scaling | None, str | None]:
    if given is None:
        return None, None
    if not isinstance(given, Mapping):
        raise TypeError(f"denormalize must be a mapping with mean and std, got {given!r}")
    rest = {key: value for key, value in given.items() if key != "unit"}
    return scaling("denormalize", rest), given.get("unit")


def _class_names(given: Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    whole = isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)
    if not whole:
        raise TypeError(f"class_names must be a list of texts, one a class, got {given!r}")
    if len(set(given)) != len(given) or "" in given:
        raise ValueError(f"class_names must differ and none be empty, got {list(given)}")
    return tuple(given)
