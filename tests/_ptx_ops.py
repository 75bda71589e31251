"""What the value instructions of PTX compute, on arrays with an element a thread.

Written from the PTX ISA, "Instruction Set". What PTX only approximates (ex2, rcp) is rounded
correctly.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np
from _ptx_floats import (
    Array,
    Function,
    flush,
    flushed,
    fma,
    from_bf16,
    gross_reciprocal,
    in_double,
    largest,
    least,
    saturated,
    to_bf16,
    to_f16,
    to_whole,
)

KINDS: dict[str, str] = {  # as NumPy has them; bfloat16, and pairs, as the bits that they are
    "pred": "?",
    **{f"{sign}{bits}": f"{kind}{bits // 8}" for sign, kind in zip("bus", "uui", strict=True)
       for bits in (8, 16, 32, 64)},
    "f16": "f2", "f32": "f4", "f64": "f8", "bf16": "u2", "bf16x2": "u4", "f16x2": "u4",
}  # fmt: skip


class UnknownOpcode(NotImplementedError):
    """An instruction, or a modifier, that nothing here executes."""


class Operation(NamedTuple):
    """A function of arrays; the kinds of what it returns, and of what it takes."""

    function: Function
    out: str
    takes: tuple[str, ...]


@functools.cache
def find(opcode: str) -> Operation:
    """What a value instruction computes.

    Raises:
        UnknownOpcode: It is none that is known, with every one of its modifiers.
    """
    name, *modifiers = opcode.split(".")
    try:
        kind = modifiers[-1]
        if name == "cvt":
            return _convert(modifiers)
        if name == "setp":
            return _compare(*modifiers)
        flags = set(modifiers[:-1])
        ftz = "ftz" in flags and kind == "f32"
        family = FLOATS if KINDS[kind][0] == "f" else INTEGERS
        function, takes, allowed = family[(name, *sorted(flags - {"ftz"}))]
    except (KeyError, TypeError, IndexError, ValueError):
        raise UnknownOpcode(opcode) from None
    if kind not in allowed.split():
        raise UnknownOpcode(opcode)
    function = flushed(function) if ftz else function
    if name in ("mul", "mad") and "wide" in flags:
        wide = kind[0] + str(2 * int(kind[1:]))
        return Operation(function, wide, (kind, kind, wide)[: len(takes)])
    return Operation(function, kind, tuple(kind if one == "=" else one for one in takes))


# --- integers and bits ----------------------------------------------------------------------------


def _quotient(a: Array, b: Array) -> Array:
    """Towards 0. A divisor of 0 is the machine's to find."""
    b = np.where(b == 0, 1, b).astype(b.dtype)
    return (a - np.fmod(a, b)) // b


def _remainder(a: Array, b: Array) -> Array:
    return np.fmod(a, np.where(b == 0, 1, b).astype(b.dtype))


def _wide(a: Array, b: Array, c: Array | int = 0) -> Array:
    kind = f"{a.dtype.kind}{2 * a.dtype.itemsize}"
    return a.astype(kind) * b.astype(kind) + c


def _high(a: Array, b: Array) -> Array:
    return (_wide(a, b) >> np.array(8 * a.dtype.itemsize, a.dtype)).astype(a.dtype)


def _left(a: Array, n: Array) -> Array:
    width = 8 * a.dtype.itemsize
    moved = a << np.minimum(n, width - 1).astype(a.dtype)
    return np.where(n < width, moved, 0).astype(a.dtype)


def _right(a: Array, n: Array) -> Array:
    """Fills with the sign, or with zeros."""
    width = 8 * a.dtype.itemsize
    moved = a >> np.minimum(n, width - 1).astype(a.dtype)
    return moved if a.dtype.kind == "i" else np.where(n < width, moved, 0).astype(a.dtype)


def _field(a: Array, first: Array, length: Array) -> Array:
    """bfe: bits first, ..., first + length - 1; of signed numbers the last one is the sign."""
    first, length = np.minimum(first & 255, 32), np.minimum(length & 255, 32)
    moved = a.astype("i8" if a.dtype.kind == "i" else "u8") >> first.astype(a.dtype)
    up = (64 - length).astype(moved.dtype)
    cut = (moved << np.minimum(up, 63)) >> np.minimum(up, 63)
    return np.where(length == 0, 0, cut).astype(a.dtype)


def _permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt: four bytes of the eight of b:a, each chosen by 4 bits, of which one copies the sign."""
    pool = a.astype("u8") | (b.astype("u8") << np.uint64(32))
    result = np.zeros(np.broadcast_shapes(pool.shape, np.shape(selector)), "u8")
    for place in range(4):
        choice = (selector.astype("u8") >> np.uint64(4 * place)) & np.uint64(15)
        byte = (pool >> (np.uint64(8) * (choice & np.uint64(7)))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(choice & np.uint64(8), sign, byte)
        result |= byte << np.uint64(8 * place)
    return result.astype("u4")


def _select(a: Array, b: Array, which: Array) -> Array:
    return np.where(which, a, b)


def _reciprocal(x: Array) -> Array:
    return gross_reciprocal(x) if x.dtype == "f8" else in_double(np.reciprocal)(x)


# name and modifiers in order -> function, what it takes ("=": its own kind), of which kinds
FLOATS: dict[tuple[str, ...], tuple[Function, tuple[str, ...], str]] = {
    **{
        (name, *rounding): (function, ("=",) * count, "f32 f64")
        for name, function, count in (
            ("add", np.add, 2), ("sub", np.subtract, 2), ("mul", np.multiply, 2),
        )
        for rounding in ((), ("rn",))
    },
    ("div", "rn"): (np.divide, ("=", "="), "f32 f64"),
    ("div", "full"): (in_double(np.divide), ("=", "="), "f32"),
    ("fma", "rn"): (fma, ("=", "=", "="), "f32 f64"),
    ("neg",): (np.negative, ("=",), "f32 f64"),
    ("abs",): (np.abs, ("=",), "f32 f64"),
    ("max",): (largest, ("=", "="), "f32 f64"),
    ("min",): (least, ("=", "="), "f32 f64"),
    ("selp",): (_select, ("=", "=", "pred"), "f32 f64"),
    ("ex2", "approx"): (in_double(np.exp2), ("=",), "f32"),
    ("lg2", "approx"): (in_double(np.log2), ("=",), "f32"),
    ("rcp", "approx"): (_reciprocal, ("=",), "f32 f64"),
}  # fmt: skip
_WORDS, _SIGNED = "b16 b32 b64", "s16 s32 s64"
_NUMBERS = f"{_SIGNED} u16 u32 u64"
INTEGERS: dict[tuple[str, ...], tuple[Function, tuple[str, ...], str]] = {
    ("add",): (np.add, ("=", "="), _NUMBERS),
    ("sub",): (np.subtract, ("=", "="), _NUMBERS),
    ("mul", "lo"): (np.multiply, ("=", "="), _NUMBERS),
    ("mul", "hi"): (_high, ("=", "="), "s32 u32"),
    ("mul", "wide"): (_wide, ("=", "="), "s16 u16 s32 u32"),
    ("mad", "lo"): (lambda a, b, c: a * b + c, ("=", "=", "="), _NUMBERS),
    ("mad", "wide"): (_wide, ("=", "=", "wide"), "s16 u16 s32 u32"),
    ("div",): (_quotient, ("=", "="), _NUMBERS),
    ("rem",): (_remainder, ("=", "="), _NUMBERS),
    ("neg",): (np.negative, ("=",), _SIGNED),
    ("abs",): (np.abs, ("=",), _SIGNED),
    ("max",): (np.maximum, ("=", "="), _NUMBERS),
    ("min",): (np.minimum, ("=", "="), _NUMBERS),
    ("and",): (np.bitwise_and, ("=", "="), f"{_WORDS} pred"),
    ("or",): (np.bitwise_or, ("=", "="), f"{_WORDS} pred"),
    ("xor",): (np.bitwise_xor, ("=", "="), f"{_WORDS} pred"),
    ("not",): (np.invert, ("=",), f"{_WORDS} pred"),
    ("shl",): (_left, ("=", "u32"), _WORDS),
    ("shr",): (_right, ("=", "u32"), f"{_NUMBERS} {_WORDS}"),
    ("bfe",): (_field, ("=", "u32", "u32"), "u32 s32"),
    ("prmt",): (_permute, ("=", "=", "="), "b32"),
    ("selp",): (_select, ("=", "=", "pred"), f"{_NUMBERS} {_WORDS}"),
}


# --- comparisons and conversions ------------------------------------------------------------------

_COMPARISONS = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _number(x: Array) -> Array:
    return x == x


def _compare(how: str, kind: str) -> Operation:
    """setp: of floats "ne" and the like are false beside a NaN, and true with a "u"."""
    halves = {"bf16": from_bf16, "bf16x2": from_bf16, "f16x2": lambda x: x.astype("u2").view("f2")}
    decoded = halves.get(kind, lambda x: x)
    floats = KINDS[kind][0] == "f" or kind in halves
    if how in ("num", "nan") and floats:

        def compare(a: Array, b: Array) -> Array:
            both = _number(decoded(a)) & _number(decoded(b))
            return both if how == "num" else ~both
    elif how in _COMPARISONS:

        def compare(a: Array, b: Array) -> Array:
            return _COMPARISONS[how](decoded(a), decoded(b))
    elif how == "ne":

        def compare(a: Array, b: Array) -> Array:
            a, b = decoded(a), decoded(b)
            return (a != b) & _number(a) & _number(b)
    elif floats and how in ("equ", "neu", "ltu", "leu", "gtu", "geu"):

        def compare(a: Array, b: Array) -> Array:
            a, b = decoded(a), decoded(b)
            unordered = ~(_number(a) & _number(b))
            return unordered | ((a != b) if how == "neu" else _COMPARISONS[how[:2]](a, b))
    else:
        raise KeyError(how)
    if kind.endswith("x2"):
        both = lambda x: (x & np.uint32(0xFFFF), x >> np.uint32(16))  # noqa: E731
        pair = lambda a, b: tuple(map(compare, both(a), both(b)))  # noqa: E731
        return Operation(pair, "pred", (kind, kind))
    return Operation(compare, "pred", (kind, kind))


def _convert(modifiers: list[str]) -> Operation:
    """cvt, to `to` from `of`."""
    *flags, to, of = modifiers
    if to in ("bf16x2", "f16x2"):
        if flags != ["rn"] or of != "f32":
            raise KeyError(to)
        half = to_bf16 if to == "bf16x2" else lambda x: to_f16(x).view("u2")
        pack = lambda a, b: (half(a).astype("u4") << np.uint32(16)) | half(b)  # noqa: E731
        return Operation(pack, to, (of, of))
    function = _conversion(to, of, [flag for flag in flags if flag not in ("ftz", "sat")])
    if "ftz" in flags:
        if "f32" not in (to, of):
            raise KeyError("ftz")
        function = _ends_flushed(function, to, of)
    if "sat" in flags:
        if KINDS[to][0] != "f":
            raise KeyError("sat")
        return Operation(lambda x: saturated(function(x)), to, (of,))
    return Operation(function, to, (of,))


def _ends_flushed(function: Function, to: str, of: str) -> Function:
    def flushed(x: Array) -> Array:
        result = function(flush(x) if of == "f32" else x)
        return flush(result) if to == "f32" else result

    return flushed


def _conversion(to: str, of: str, rounding: list[str]) -> Function:
    """Exact conversions take no rounding, the others need one."""
    whole = "su"
    if to == "bf16" and of == "f32" and rounding == ["rn"]:
        return to_bf16
    if of == "bf16" and to in ("f32", "f64") and not rounding:
        return lambda x: from_bf16(x).astype(KINDS[to])
    if not (re.fullmatch(r"[suf]\d+", to) and re.fullmatch(r"[suf]\d+", of)):
        raise KeyError(to)
    narrows = to[0] == "f" and (of[0] in whole or int(of[1:]) > int(to[1:]))
    if to[0] == "f" or of[0] in whole:
        if rounding != (["rn"] if narrows else []):
            raise KeyError(rounding)
        return lambda x: x.astype(KINDS[to])
    if KINDS[to] in ("i8", "u8"):
        raise KeyError(to)
    ways = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    (way,) = rounding
    return functools.partial(to_whole, ways[way], KINDS[to])
