"""The arithmetic of floats in PTX: each result rounded once, float32 subnormals kept but for .ftz.

NaN payloads are not followed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Function = Callable[..., Any]


def flush(x: Array) -> Array:
    """Subnormal float32 as zeros of their sign."""
    return np.where(np.abs(x) < np.finfo("f4").tiny, np.copysign(np.float32(0), x), x)


def flushed(function: Function) -> Function:
    return lambda *arrays: flush(
        function(*(flush(x) if x.dtype == np.float32 else x for x in arrays))
    )


def fma32(a: Array, b: Array, c: Array) -> Array:
    """a·b + c rounded once: the product is exact in float64, the sum there rounded to odd."""
    product, c = np.multiply(a, b, dtype="f8"), c.astype("f8")
    return _odd_sum(product, c).astype("f4")


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, and what is lost."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd_sum(a: Array, b: Array) -> Array:
    """a + b where it is exact, else the neighbour with an odd last bit (Boldo and Melquiond)."""
    total, lost = _two_sum(a, b)
    bits = np.atleast_1d(total).view("i8")
    inexact = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(inexact, bits + step, bits).view("f8")


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a·b, and what is lost (Dekker)."""

    def halves(x: Array) -> tuple[Array, Array]:
        large = x * 134217729.0
        high = large - (large - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


_libm_fma = ctypes.CDLL(None).fma
_libm_fma.restype, _libm_fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
_each_fma = np.frompyfunc(_libm_fma, 3, 1)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """a·b + c rounded once; numbers so large or small that a part is lost go to the C library."""
    high, low = _two_product(a, b)
    first, rest = _two_sum(high, c)
    result = first + _odd_sum(rest, low)
    sizes = [np.abs(x) for x in (a, b, high)]
    safe = [(x == 0) | ((x > 1e-250) & (x < 1e250)) for x in sizes]
    careful = ~(safe[0] & safe[1] & safe[2] & (np.abs(c) < 1e250))
    if careful.any():
        exact = _each_fma(*np.broadcast_arrays(a, b, c)).astype("f8")
        return np.where(careful, exact, result)
    return result


def fma(a: Array, b: Array, c: Array) -> Array:
    return fma32(a, b, c) if a.dtype == np.float32 else fma64(a, b, c)


def largest(a: Array, b: Array) -> Array:
    """The one that is a number; +0 is larger than -0."""
    return np.where((a == b) & (a == 0), a + b, np.fmax(a, b))


def least(a: Array, b: Array) -> Array:
    return -largest(-a, -b)


def in_double(function: Function) -> Function:
    """Of float32, rounded from float64: correct but for ties that do not occur."""
    return lambda *arrays: function(*(x.astype("f8") for x in arrays)).astype("f4")


def gross_reciprocal(x: Array) -> Array:
    """rcp.approx.ftz.f64: 20 bits; the low 32 of argument and result count as 0."""
    cut = np.uint64(0xFFFFFFFF00000000)
    inverse = 1.0 / (x.view("u8") & cut).view("f8")
    small = np.abs(inverse) < np.finfo("f8").tiny
    return (np.where(small, np.copysign(0.0, x), inverse).view("u8") & cut).view("f8")


def from_bf16(bits: Array) -> Array:
    """float32."""
    return (bits.astype("u4") << np.uint32(16)).view("f4")


def to_bf16(x: Array) -> Array:
    """Bits of the nearest bfloat16 to a float32, even at a tie."""
    bits = np.asarray(x).view("u4")
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), nearest).astype("u2")


def to_f16(x: Array) -> Array:
    return x.astype("f2")


def saturated(x: Array) -> Array:
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)


def to_whole(way: Function, kind: str, x: Array) -> Array:
    """Clamped; NaN is 0."""
    ends = np.iinfo(kind)
    return np.clip(np.where(np.isnan(x), 0, way(x.astype("f8"))), ends.min, ends.max).astype(kind)
