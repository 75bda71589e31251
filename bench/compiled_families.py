"""The calls whose machine code is shown: the launch table from end to end, and every option."""

from __future__ import annotations

from typing import NamedTuple

from fused_loss.bench.calls import Call

LENGTHS = (2, 10, 32, 100, 128, 1000, 1024, 4096, 16384, 32000, 50257, 131072, 262144)
DTYPES = ("bf16", "f32")
FULLEST = Call(
    targets="soft",
    class_weight="like",
    smoothing=0.1,
    weights="alpha",
    class_mask="rows",
    position_weight=True,
    element_weight="full",
    missing=True,
    samples="many",
)


class Family(NamedTuple):
    """A call, and what is shown of it."""

    name: str
    call: Call


def families() -> list[Family]:
    """All of them; 131,072 samples, or 100 where rows are few, or one."""
    many = Call(samples="many")
    regression = many._replace(classes=10, r_layout="wide")
    few = Call(samples="few")
    soft = many._replace(targets="soft")
    shown = [("rows", many._replace(classes=classes)) for classes in LENGTHS]
    shown.append(("regression-heavy", regression))
    shown.append(("sliced outputs", many._replace(classes=10, r_layout="sliced")))
    shown.append(("dense", many._replace(classes=19, layout="spatial")))
    shown += [("few rows", few._replace(classes=classes)) for classes in (32000, 262144)]
    shown.append(("one row", few._replace(classes=262144, layout="one")))
    shown += [("no gradient", many._replace(classes=c, grads="")) for c in (1024, 32000)]
    shown.append(("no gradient, few rows", few._replace(classes=262144, grads="")))
    shown += [("soft targets", soft._replace(classes=classes)) for classes in (1024, 32000)]
    shown += [("every option", FULLEST._replace(classes=classes)) for classes in (1024, 32000)]
    shown.append(("every option, few rows", FULLEST._replace(classes=262144, samples="few")))
    return [
        Family(f"{name}, {call.classes} classes, {dtype}", _in(call, dtype))
        for name, call in shown
        for dtype in DTYPES
    ]


def _in(call: Call, dtype: str) -> Call:
    return call._replace(z_dtype=dtype, r_dtype=dtype)
