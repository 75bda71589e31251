"""What every kernel is made of: rounding, addresses, weights and denominators."""

import triton
import triton.language as tl


@triton.jit
def divide(a, b, ACC: tl.constexpr):
    """a / b, correctly rounded."""
    if ACC == tl.float32:
        return tl.math.div_rn(a, b)
    else:
        return a / b


@triton.jit
def rounded(x, ptr):
    """x in the dtype that `ptr` holds; float64 reaches bfloat16 by float32."""
    if (x.dtype == tl.float64) & (ptr.dtype.element_ty == tl.bfloat16):
        x = x.to(tl.float32)
    return x.to(ptr.dtype.element_ty)


@triton.jit
def row_of(x, p, S):
    """The addresses of the rows of positions p = n·S + s; x is (pointer, stride n, c, s)."""
    return x[0] + (p // S) * x[1] + (p % S) * x[3]


@triton.jit
def element_of(x, i, D, FLAT: tl.constexpr):
    """The addresses of elements i = n·D + d; x is (pointer, stride n, stride d)."""
    if FLAT:
        return x[0] + i
    else:
        return x[0] + (i // D) * x[1] + (i % D) * x[2]


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
    ACC: tl.constexpr,
):
    """total / denominator; where nothing is labelled, the value for nothing."""
    if KIND == "number":
        return divide(total, tl.full([], number, ACC), ACC)
    elif KIND == "tensor":
        return divide(total, tl.load(ptr).to(ACC), ACC)
    else:
        # Weights that cancel leave a sum that is not 0: nothing is labelled there either.
        return tl.where(shares == 0.0, tl.full([], of_nothing, ACC), divide(total, shares, ACC))
