"""What every kernel is made of: rounding, addresses, weights and denominators."""

import triton
import triton.language as tl
from triton import knobs
from triton.language import constexpr
from triton.language.target_info import is_cuda

INTERPRETED = constexpr(knobs.runtime.interpret)
VECTOR = constexpr(8)  # elements: 16 bytes of a 16-bit type
PEELED = constexpr(0)  # as UNIT: each row begins anywhere, and is peeled (see `triton_pieces`)


@triton.jit
def divide(a, b, ACC: tl.constexpr):
    """a / b, correctly rounded."""
    if ACC == tl.float32:
        return tl.math.div_rn(a, b)
    else:
        return a / b


@triton.jit
def exp(x):
    """e^x. Of float32 on NVIDIA what is less than 2^-126 is 0: 2 instructions an element, not 5."""
    if INTERPRETED:
        return tl.exp(x)
    elif (x.dtype == tl.float32) & is_cuda():
        power = x * 1.4426950408889634  # log2(e)
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp(x)


@triton.jit
def ratio(a, b, ACC: tl.constexpr):
    """a / b in float64; for float32 to 2^-44, at a third of the cost, b in the range of float32.

    By a step of Newton from the reciprocal in float32. Of b = 0 it makes NaN, where a / b is ±inf.
    """
    if ACC == tl.float64:
        return a / b
    else:
        near = reciprocal(b.to(tl.float32)).to(tl.float64)
        return a * (near * (2.0 - near * b.to(tl.float64)))


@triton.jit
def reciprocal(x):
    """1 / x of float32, on NVIDIA within a unit of the last place: 1 instruction, not 10."""
    if not INTERPRETED and is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def row_sums(x, ptr, INFINITE: tl.constexpr = False):
    """Σ_c x, (ROWS,) float64, of 0 <= x <= 1; for rows of float32 at `ptr` all but exact.

    In whatever order: x is split into a multiple of 2^-24·BLOCK_C, of which no sum is rounded, and
    a rest so small that the roundings of its sum do not count. Larger x are summed as usual; only
    where one may be infinite does it cost anything.
    """
    if (x.dtype == tl.float32) & (ptr.dtype.element_ty == tl.float32):
        large = 0.75 * x.shape[1]  # 2^-24·BLOCK_C is the distance of floats from here to x + large
        multiple = (x + large) - large
        rest = x - multiple
        if INFINITE:
            rest = tl.where(x == float("inf"), 0.0, rest)  # inf - inf
        return tl.sum(multiple, 1).to(tl.float64) + tl.sum(rest, 1)
    else:
        return tl.sum(x, 1).to(tl.float64)


@triton.jit
def rounded(x, ptr):
    """x in the dtype that `ptr` holds; float64 reaches bfloat16 by float32."""
    if ptr.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)
        if INTERPRETED:  # which cuts off the last 16 bits where a GPU rounds to nearest
            bits = x.to(tl.uint32, bitcast=True)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            x = tl.where(x == x, nearest, 0x7FC0).to(tl.uint16)
            return x.to(tl.bfloat16, bitcast=True)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def multiple_of(x, UNIT: tl.constexpr):
    """x, which is a multiple of UNIT, 1 to 8, as the compiler learns; of 16 it knows by itself."""
    if (UNIT <= 1) or (UNIT == 16):
        return x
    else:
        return x // UNIT * UNIT


@triton.jit
def tiles_of(n, SIZE: tl.constexpr):
    """⌈n / SIZE⌉. What `tl.cdiv` adds first would overflow just below 2^31."""
    return n // SIZE + (n % SIZE != 0)


@triton.jit
def narrowed(p, count, S):
    """int64 p < count in the dtype of count, before it is divided by S: in 64 bits that is a call.

    Where S is known to be 1 p stays as it is.
    """
    if INTERPRETED or isinstance(S, int):
        return p
    else:
        return p.to(count.dtype)


@triton.jit
def relaid(x, SHARED: tl.constexpr):
    """x (ROWS,), laid out anew where several threads share a row of the tile: a row a thread.

    What a sum over a row returns every thread of the row holds, and each would repeat what follows.
    A gather is where Triton lets a layout end. It goes through shared memory, 8 bytes a row.
    """
    if SHARED:
        return tl.gather(x, tl.arange(0, x.shape[0]), 0)
    else:
        return x


@triton.jit
def offset_of(x, p, S, UNIT: tl.constexpr):
    """Where the rows of positions p = n·S + s begin; x is (pointer, stride n, c, s).

    The strides n and s are multiples of UNIT.
    """
    n, s = (p // S).to(tl.int64), (p % S).to(tl.int64)
    return n * multiple_of(x[1], UNIT) + s * multiple_of(x[3], UNIT)


@triton.jit
def row_of(x, p, S, UNIT: tl.constexpr = 1, head=0):
    """The addresses of the rows of `offset_of`; a row that is peeled begins `head` later, aligned.

    Its classes are adjacent, in each tensor of its shape.
    """
    offset = offset_of(x, p, S, UNIT)
    if UNIT == PEELED:
        offset = multiple_of(offset + head, VECTOR)
    return x[0] + offset


@triton.jit
def place_of(i, count, D, FLAT: tl.constexpr):
    """(n, d) of int64 elements i = n·D + d < count; where all is contiguous (0, i) says as much."""
    if FLAT:
        return 0, i
    else:
        i = narrowed(i, count, D)
        return (i // D).to(tl.int64), (i % D).to(tl.int64)


@triton.jit
def element_of(x, n, d, FLAT: tl.constexpr):
    """The addresses of elements (n, d) of `place_of`; x is (pointer, stride n, stride d)."""
    if FLAT:
        return x[0] + d
    else:
        return x[0] + n * x[1] + d * x[2]


@triton.jit
def head_weights(
    weights_ptr, weights_stride, w_reg, w_cls, WEIGHTS: tl.constexpr, ACC: tl.constexpr
):
    """(w_reg, w_cls) from two scalars, an alpha, or a pair."""
    if WEIGHTS == "alpha":
        alpha = tl.load(weights_ptr).to(ACC)
        return alpha, 1.0 - alpha
    elif WEIGHTS == "pair":
        return tl.load(weights_ptr).to(ACC), tl.load(weights_ptr + weights_stride).to(ACC)
    else:
        return tl.full([], w_reg, ACC), tl.full([], w_cls, ACC)


@triton.jit
def mean_of(
    total,
    shares,  # what the elements of this call add up to; of no account but for "own" and "counted"
    number,
    ptr,
    of_nothing,  # NaN or 0
    KIND: tl.constexpr,  # where the denominator comes from: see `triton_launch`
):
    """total / denominator in float64; where nothing is labelled, the value for nothing."""
    if KIND == "number":
        return total / number
    elif KIND == "tensor":
        return total / tl.load(ptr).to(tl.float64)
    else:
        # Weights that cancel leave a sum that is not 0: nothing is labelled there either.
        return tl.where(shares == 0.0, of_nothing, total / shares)
