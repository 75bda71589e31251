"""A piece of a tile of rows: adjacent classes that are read, summed and written together.

A row is one piece (`ONE_BLOCK`) or one block of classes after another. A longer row that is not
aligned to vectors may be `PEELED`: it begins at its first aligned class, its body moves as vectors,
and what lies before and behind that is one small piece more, read first and written last. Classes
then count from there, the ones before it as -1, -2, ... Of other rows the body is all there is.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from fused_loss.kernels.triton_math import PEELED, VECTOR, exp, offset_of, rounded, row_sums
from fused_loss.kernels.triton_targets import (
    class_targets,
    class_weights,
    possible_classes,
    weighted_logits,
)

ENDS = constexpr(2 * VECTOR.value)  # of which 2·(VECTOR - 1) can be there


@triton.jit
def before_body(z, p, S, UNIT: tl.constexpr):
    """How many classes of the one row p, (1,), lie before the first that is aligned: a scalar."""
    if UNIT == PEELED:
        offset = offset_of(z, p, S, 1)
        return tl.sum(offset * (VECTOR - 1) % VECTOR, 0)  # as -offset, which % would leave negative
    else:
        return 0


@triton.jit
def end_of_body(C, head, UNIT: tl.constexpr):
    """The class behind the last one of the body; of rows that are not peeled that is C."""
    if UNIT == PEELED:
        return (C - head) // VECTOR * VECTOR
    else:
        return C


@triton.jit
def ends_of(C, head, first):
    """Classes (1, ENDS) before and behind the body, and which of them there are: none if first > 0.

    So the slice of a row that begins with its body has them, and no other.
    """
    body = end_of_body(C, head, PEELED)
    i = tl.arange(0, ENDS)[None, :].to(tl.int64)
    return tl.where(i < head, i, i + body) - head, i + first * ENDS < C - body


@triton.jit
def read_piece(
    rows,  # starts of the rows (ROWS,): of logits, targets, mask of classes
    steps,  # and their strides between classes
    c,  # classes (1, BLOCK_C)
    there,  # which of them there are, (1, BLOCK_C)
    inside,  # (ROWS,)
    HAS_MASK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Logits, -inf outside the row and where impossible; the row's mask; which are possible."""
    mask = inside[:, None] & there
    possible = possible_classes(rows[2][:, None], steps[2], c, mask, HAS_MASK)
    x = tl.load(rows[0][:, None] + c * steps[0], mask=mask, other=float("-inf")).to(ACC)
    if HAS_MASK:
        x = tl.where(possible, x, float("-inf"))
    return x, mask, possible


@triton.jit
def targets_of_piece(
    rows,
    steps,
    w_ptr,
    c,
    there,
    mask,
    possible,
    keep,  # 1-ε
    even,  # (ROWS,) ε/K
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """q' of probabilities, (ROWS, BLOCK_C); of smoothed class indices the weights; else nothing."""
    if SOFT:
        w = class_weights(w_ptr, c, there, HAS_WEIGHT, ACC)
        return class_targets(
            rows[1][:, None], c, mask, possible, w, steps[1], keep, even[:, None], SMOOTH, ACC
        )
    elif SMOOTH:
        return tl.where(possible, class_weights(w_ptr, c, there, HAS_WEIGHT, ACC), 0.0)
    else:
        return tl.zeros([1, 1], ACC)


@triton.jit
def sums_of_piece(
    x, q, mask, shift, ptr, SOFT: tl.constexpr, HAS_MASK: tl.constexpr, SMOOTH: tl.constexpr
):
    """e = exp(z - shift), and over the piece s = Σ e, A = Σ q', B = Σ q'·(z - shift), (ROWS,).

    s, and A of probabilities, in float64.
    """
    centred = x - shift[:, None]
    e = exp(centred)
    total = row_sums(e, ptr)
    mass = tl.zeros_like(shift)
    cross = tl.zeros_like(shift)
    if SOFT:
        mass = row_sums(q, ptr, True)
    elif SMOOTH:
        mass = tl.sum(q, 1)
    if SOFT or SMOOTH:
        cross = weighted_logits(q, centred, mask, HAS_MASK)
    return e, total, mass, cross


@triton.jit
def is_at(label, start, BLOCK_C: tl.constexpr):
    """Which of the classes [start, start + BLOCK_C) each label is, (ROWS, BLOCK_C).

    In 32 bits, an instruction less. Of labels 2^32 apart one at the most is legal, and the row of
    an illegal one is NaN throughout.
    """
    at = (label - start).to(tl.int32)
    return tl.arange(0, BLOCK_C)[None, :] == at[:, None]


@triton.jit
def write_piece(
    g_row,
    g_stride_c,
    c,
    mask,
    possible,
    e,
    q,  # of `targets_of_piece`
    labelled,
    at,  # (ROWS, BLOCK_C): the class that is the label
    at_label,  # of `scaled`, as the next three
    over,
    scale,
    even,
    SOFT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    UNIT: tl.constexpr,
):
    """The gradient; 0 where the row has no label, whatever there is.

    Two stores, of which a row takes one: to choose an element at a time takes more instructions.
    Not so where a row's own mask would part what a vector holds, or there are no vectors.
    """
    d = e * over[:, None]
    if SOFT:
        d -= q * scale[:, None]
    else:
        if SMOOTH:
            d -= even[:, None] * q
        d = tl.where(at, at_label[:, None], d)
    if HAS_MASK:
        d = tl.where(possible, d, 0.0)
    to = g_row[:, None] + c * g_stride_c
    labelled = labelled[:, None]
    if UNIT == 1 and d.shape[0] > 1:
        tl.store(to, rounded(tl.where(labelled, d, 0.0), g_row), mask=mask)
    else:
        tl.store(to, rounded(d, g_row), mask=mask & labelled)
        tl.store(to, tl.zeros_like(d).to(g_row.dtype.element_ty), mask=mask & ~labelled)
