"""The two passes over a row that is longer than a block, and the loss between them.

`row_tile` makes them over the whole of it.
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_math import PEELED, exp, ratio
from fused_loss.kernels.triton_pieces import (
    ends_of,
    is_at,
    read_piece,
    sums_of_piece,
    targets_of_piece,
    write_piece,
)
from fused_loss.kernels.triton_targets import possible_classes


@triton.jit
def count_possible(
    m_row,
    m_stride_c,
    inside,
    last,
    C,
    head,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """How many classes of a row are possible, (ROWS,); [0, last) is its body."""
    count = tl.zeros(inside.shape, ACC)
    if UNIT == PEELED:
        c_ends, there = ends_of(C, head, 0)
        beside = possible_classes(m_row[:, None], m_stride_c, c_ends, inside[:, None] & there, True)
        count += tl.sum(beside.to(ACC), 1)
    for start in range(0, last, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
        mask = inside[:, None] & (c < last)
        count += tl.sum(possible_classes(m_row[:, None], m_stride_c, c, mask, True).to(ACC), 1)
    return count


@triton.jit
def add_piece(
    m,
    shift,  # m, or 0 while it is -inf
    total,
    mass,
    cross,
    count,
    rows,
    steps,
    w_ptr,
    c,
    there,
    inside,
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """m, shift, s, A, B and K (ROWS,) of what has been read of the row and the piece c."""
    x, mask, possible = read_piece(rows, steps, c, there, inside, HAS_MASK, ACC)
    if HAS_MASK:
        count += tl.sum(possible.to(ACC), 1)
    m = tl.maximum(m, tl.max(x, 1))
    new_shift = tl.where(m == float("-inf"), 0.0, m)
    q = targets_of_piece(
        rows, steps, w_ptr, c, there, mask, possible, keep, even, SOFT, HAS_WEIGHT, SMOOTH, ACC
    )
    _e, new_total, new_mass, new_cross = sums_of_piece(
        x, q, mask, new_shift, rows[0], SOFT, HAS_MASK, SMOOTH
    )
    carried = tl.where(total == 0.0, 0.0, total * exp(shift - new_shift))  # 0 · inf
    total = (carried + new_total).to(ACC)
    if SOFT or SMOOTH:
        moved = shift - new_shift
        cross += tl.where(moved == 0.0, 0.0, mass * moved) + new_cross  # inf · 0
        mass = (mass + new_mass).to(ACC)
    return m, new_shift, total, mass, cross, count


@triton.jit
def read_classes(
    rows,  # starts of the rows (ROWS,): of logits, targets, mask of classes
    steps,  # and their strides between classes
    w_ptr,
    inside,
    first,
    last,
    C,
    head,  # of `before_body`
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The first pass over the classes [first, last) of the body, block after block.

    What is before and behind the body belongs to the pass that begins with it.

    Returns m (0 while it is -inf), s, A and B as `row_tile` has them, and with a mask K, except
    for smoothed probabilities: there K comes before the first q'.
    """
    m = tl.full(inside.shape, float("-inf"), ACC)
    shift = tl.zeros(inside.shape, ACC)
    total = tl.zeros(inside.shape, ACC)
    mass = tl.zeros(inside.shape, ACC)
    cross = tl.zeros(inside.shape, ACC)
    count = tl.zeros(inside.shape, ACC)
    if UNIT == PEELED:
        c_ends, there = ends_of(C, head, first)
        m, shift, total, mass, cross, count = add_piece(
            m, shift, total, mass, cross, count, rows, steps, w_ptr, c_ends, there, inside, keep,
            even, SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, ACC,
        )  # fmt: skip
    for start in range(first, last, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
        m, shift, total, mass, cross, count = add_piece(
            m, shift, total, mass, cross, count, rows, steps, w_ptr, c, c < last, inside, keep,
            even, SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, ACC,
        )  # fmt: skip
    return shift, total, mass, cross, count


@triton.jit
def loss_of(
    shift,  # m, or 0 while it is -inf
    total,  # s
    mass,  # A of probabilities, Σ w of smoothed class indices
    cross,  # B, and Σ w·(z - m)
    count,  # K
    z_t,
    w_t,
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
):
    """A row's loss in float64, A, and what q' is at a class index beside even·w; each (ROWS,).

    A value a row is little beside its logits: what the sums of the row come to is rounded once.
    """
    log_total = tl.log(total.to(z_t.dtype)).to(tl.float64)
    if HAS_MASK:
        log_total = tl.where(count == 0.0, 0.0, log_total)
    hit = w_t
    if SOFT:
        loss = mass * log_total - cross
    else:
        if SMOOTH:
            hit = keep * w_t  # q' is even·w, and at t also this
        nll = log_total - (z_t.to(tl.float64) - shift)
        if HAS_MASK:
            nll = tl.where((hit == 0.0) & (nll == float("inf")), 0.0, nll)
        loss = hit * nll
        if SMOOTH:
            loss += even * (mass * log_total - cross)
            mass = hit + even * mass
        else:
            mass = hit
    return loss, mass, hit


@triton.jit
def scaled(
    shift,
    total,
    mass,
    z_t,
    w_t,
    hit,  # of `loss_of`, as `mass`
    even,
    scale,  # in float64
    C,
    SOFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """What a row of the gradient is made of, times its scale, and that; each (ROWS,).

    A / s, the whole gradient at a class index, and ε/K; each is rounded once. Of one class alone p
    is 1 whatever its logit is: no gradient.
    """
    scale = tl.where(C == 1, 0.0 * scale, scale)
    over = ratio(mass * scale, total, ACC)
    at_label = over
    if not SOFT:
        at_label = exp(z_t - shift) * over - hit * scale
        if SMOOTH:
            even = even * scale
            at_label -= even * w_t
            even = even.to(ACC)
    return over.to(ACC), at_label.to(ACC), even, scale.to(ACC)


@triton.jit
def rewrite_piece(
    rows,
    steps,
    g_row,
    g_stride_c,
    w_ptr,
    c,
    there,
    inside,
    labelled,
    at,
    at_label,
    shift,
    over,
    scale,
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    UNIT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Read the piece c once more, and write its gradient."""
    x, mask, possible = read_piece(rows, steps, c, there, inside, HAS_MASK, ACC)
    q = targets_of_piece(
        rows, steps, w_ptr, c, there, mask, possible, keep, even, SOFT, HAS_WEIGHT, SMOOTH, ACC
    )
    write_piece(
        g_row, g_stride_c, c, mask, possible, exp(x - shift[:, None]), q, labelled, at, at_label,
        over, scale, even, SOFT, HAS_MASK, SMOOTH, UNIT,
    )  # fmt: skip


@triton.jit
def write_classes(
    rows,
    steps,
    g_row,
    g_stride_c,
    w_ptr,
    inside,
    labelled,
    label,
    at_label,  # of `scaled`, as `over`, `scale` and `even`
    shift,
    over,
    scale,
    first,
    last,
    C,
    head,
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The second pass over what `read_classes` has read: the gradient, block after block."""
    for start in range(first, last, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
        rewrite_piece(
            rows, steps, g_row, g_stride_c, w_ptr, c, c < last, inside, labelled,
            is_at(label, start, BLOCK_C), at_label, shift, over, scale, keep, even,
            SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, UNIT, ACC,
        )  # fmt: skip
    if UNIT == PEELED:
        c_ends, there = ends_of(C, head, first)
        rewrite_piece(
            rows, steps, g_row, g_stride_c, w_ptr, c_ends, there, inside, labelled,
            c_ends == label[:, None], at_label, shift, over, scale, keep, even,
            SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, UNIT, ACC,
        )  # fmt: skip
