"""The two passes over a row that is longer than a block, and the loss between them.

`row_tile` makes them over the whole of it.
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_math import exp, rounded, row_sums
from fused_loss.kernels.triton_targets import (
    class_targets,
    class_weights,
    possible_classes,
    weighted_logits,
)


@triton.jit
def count_possible(
    m_row, m_stride_c, inside, first, last, BLOCK_C: tl.constexpr, ACC: tl.constexpr
):
    """How many of the classes [first, last) are possible, (ROWS,)."""
    c = tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
    count = tl.zeros(inside.shape, ACC)
    for start in range(first, last, BLOCK_C):
        mask = inside[:, None] & (start + c < last)
        possible = possible_classes(m_row[:, None], m_stride_c, start + c, mask, True)
        count += tl.sum(possible.to(ACC), 1)
    return count


@triton.jit
def read_classes(
    rows,  # starts of the rows (ROWS,): of logits, targets, mask of classes
    steps,  # and their strides between classes
    w_ptr,
    inside,
    first,
    last,
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The first pass over the classes [first, last), block after block.

    Returns m (0 while it is -inf), s, A and B as `row_tile` has them, and with a mask K, except
    for smoothed probabilities: there K comes before the first q'.
    """
    c = tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
    z_row, t_row, m_row = rows[0][:, None], rows[1][:, None], rows[2][:, None]
    m = tl.full(inside.shape, float("-inf"), ACC)
    shift = tl.zeros(inside.shape, ACC)
    total = tl.zeros(inside.shape, ACC)
    mass = tl.zeros(inside.shape, ACC)
    cross = tl.zeros(inside.shape, ACC)
    count = tl.zeros(inside.shape, ACC)
    for start in range(first, last, BLOCK_C):
        k = start + c
        mask = inside[:, None] & (k < last)
        possible = possible_classes(m_row, steps[2], k, mask, HAS_MASK)
        x = tl.load(z_row + k * steps[0], mask=mask, other=float("-inf")).to(ACC)
        if HAS_MASK:
            x = tl.where(possible, x, float("-inf"))
            if not (SOFT and SMOOTH):
                count += tl.sum(possible.to(ACC), 1)
        m = tl.maximum(m, tl.max(x, 1))
        new_shift = tl.where(m == float("-inf"), 0.0, m)
        centred = x - new_shift[:, None]
        carried = tl.where(total == 0.0, 0.0, total * exp(shift - new_shift))  # 0 · inf
        total = (carried + row_sums(exp(centred), z_row)).to(ACC)
        if SOFT or SMOOTH:
            q = class_weights(w_ptr, k, last, HAS_WEIGHT, ACC)
            if SOFT:
                q = class_targets(
                    t_row, k, mask, possible, q, steps[1], keep, even[:, None], SMOOTH, ACC
                )
            else:
                q = tl.where(possible, q, 0.0)
            cross += mass * (shift - new_shift) + weighted_logits(q, centred, mask, HAS_MASK)
            mass += tl.sum(q, 1)
        shift = new_shift
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
    over = mass * scale / total
    at_label = over
    if not SOFT:
        at_label = exp(z_t - shift) * over - hit * scale
        if SMOOTH:
            even = even * scale
            at_label -= even * w_t
            even = even.to(ACC)
    return over.to(ACC), at_label.to(ACC), even, scale.to(ACC)


@triton.jit
def is_at(label, start, BLOCK_C: tl.constexpr):
    """Which of the classes [start, start + BLOCK_C) each label is, (ROWS, BLOCK_C).

    In 32 bits, an instruction less. Of labels 2^32 apart one at the most is legal, and the row of
    an illegal one is NaN throughout.
    """
    at = (label - start).to(tl.int32)
    return tl.arange(0, BLOCK_C)[None, :] == at[:, None]


@triton.jit
def store_gradient(to, d, ptr, labelled, mask):
    """Store d where the row has a label, and 0 in the others, whatever d is there.

    Two stores, of which a row takes one: to choose an element at a time takes more instructions.
    """
    labelled = labelled[:, None]
    tl.store(to, rounded(d, ptr), mask=mask & labelled)
    tl.store(to, tl.zeros_like(d).to(ptr.dtype.element_ty), mask=mask & ~labelled)


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
    keep,
    even,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The second pass over the classes [first, last): their gradient, block after block."""
    c = tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
    z_row, t_row, m_row = rows[0][:, None], rows[1][:, None], rows[2][:, None]
    for start in range(first, last, BLOCK_C):
        k = start + c
        mask = inside[:, None] & (k < last)
        possible = possible_classes(m_row, steps[2], k, mask, HAS_MASK)
        x = tl.load(z_row + k * steps[0], mask=mask, other=float("-inf")).to(ACC)
        d = exp(x - shift[:, None]) * over[:, None]
        if SOFT:
            w = class_weights(w_ptr, k, last, HAS_WEIGHT, ACC)
            d -= scale[:, None] * class_targets(
                t_row, k, mask, possible, w, steps[1], keep, even[:, None], SMOOTH, ACC
            )
        else:
            if SMOOTH:
                d -= even[:, None] * class_weights(w_ptr, k, last, HAS_WEIGHT, ACC)
            d = tl.where(is_at(label, start, BLOCK_C), at_label[:, None], d)
        if HAS_MASK:
            d = tl.where(possible, d, 0.0)
        store_gradient(g_row[:, None] + k * g_stride_c, d, g_row, labelled, mask)
