"""The arithmetic that both kernels share: a tile of rows of logits, a tile of squared errors.

For a row of logits z with maximum m and `s = Σ_c exp(z_c - m)`, both over the K possible classes,
and smoothed, class-weighted targets `q'_c = w_c · ((1-ε)·target_c + ε/K)` of mass `A = Σ_c q'_c`:

    loss      = -Σ_c q'_c · log p_c = A · log s - Σ_c q'_c · (z_c - m)
    d loss/dz = A · exp(z - m) / s - q'       0 for an impossible class

For a class index t without smoothing `q'` is `w_t` at t and 0 elsewhere. Both terms of the loss are
of one sign, so nothing cancels. An impossible class has z = -inf, and with a mask `0 · log 0 = 0`;
a target on one gives +inf. Where no class is possible, log s counts as 0.

A row that fits one block (`ONE_BLOCK`) is read once and kept in registers until its gradient is
written: 2·C·b bytes. A longer row is read block after block with a running (m, s), then read again,
from the L2 cache where it fits, for the gradient: 3·C·b bytes, 2 of them from memory. A mask adds a
byte a class, each time the row is read.

A position p = n·S + s of logits (N, C, S) lies at n·stride_n + s·stride_s; S is 1 for (N, C).
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_math import (
    divide,
    element_of,
    multiple_of,
    relaid,
    rounded,
    row_of,
)
from fused_loss.kernels.triton_passes import (
    count_possible,
    loss_of,
    read_classes,
    scaled,
    write_classes,
)
from fused_loss.kernels.triton_pieces import (
    before_body,
    end_of_body,
    is_at,
    read_piece,
    sums_of_piece,
    targets_of_piece,
    write_piece,
)
from fused_loss.kernels.triton_targets import labels_of, logit_of


@triton.jit
def row_tile(
    z,  # (pointer, stride n, stride c, stride s), as all that follow
    t,  # class indices, or probabilities in the shape of z
    g,  # gradient, written where GRAD
    class_mask,
    position_weight,
    w_ptr,  # (C,) class weights
    p,  # (ROWS,) positions, in a dtype that holds all: see `narrowed`
    inside,  # (ROWS,) bool: p < the number of positions
    scale,  # (ROWS,) d(total loss) / d(this row's weighted loss), in float64
    S,
    C,
    ignore_index,
    smoothing,  # ε
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_POSITION_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    GRAD: tl.constexpr,
    INPLACE: tl.constexpr,  # g is z
    ONE_BLOCK: tl.constexpr,
    UNIT: tl.constexpr,  # 1 to 16, divides C and the strides n and s of adjacent classes; or PEELED
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Weighted losses (ROWS,) and shares (ROWS,) of a tile of rows, and their gradient.

    The share of a row is what it adds to the denominator of "mean": `class_weight[t]`, or 1, times
    the weight of the position.
    """
    # Whether several threads share a row: one has 16 bytes of it, or UNIT classes.
    SHARED: tl.constexpr = (p.shape[0] > 1) and (
        BLOCK_C > min(UNIT, 128 // z[0].dtype.element_ty.primitive_bitwidth)
    )
    C = multiple_of(C, UNIT)
    head = before_body(z, p, S, UNIT)
    z_row, g_row = row_of(z, p, S, UNIT, head), row_of(g, p, S, UNIT, head)  # (ROWS,)
    t_row = row_of(t, p, S, UNIT, head) if SOFT else row_of(t, p, S)
    m_row = row_of(class_mask, p, S, UNIT, head) if HAS_MASK else z_row
    rows, steps = (z_row, t_row, m_row), (z[2], t[2], class_mask[2])
    keep = tl.full([], 1.0 - smoothing, ACC)
    labelled, label, legal, share = labels_of(
        t_row, w_ptr, inside, C, ignore_index, SOFT, HAS_WEIGHT, ACC
    )
    label -= head
    if HAS_WEIGHT:
        w_ptr += head
    z_t = logit_of(z_row, m_row, z[2], class_mask[2], label, legal, SOFT, HAS_MASK, ACC)
    w_t = share

    # First pass: m, s, A = Σ q' and B = Σ q'·(z - m); for class indices A and B hold the smoothed
    # part Σ w and Σ w·(z - m), scaled by `loss_of`. `shift` is m, or 0 while m is -inf.
    count = tl.full(p.shape, C, ACC)  # K
    if ONE_BLOCK:
        c = tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
        x, mask, possible = read_piece(rows, steps, c, c < C, inside, HAS_MASK, ACC)
        m = tl.max(x, 1)
        if HAS_MASK:
            count = tl.sum(possible.to(ACC), 1)
        even = divide(tl.full([], smoothing, ACC), tl.maximum(count, 1.0), ACC)
        shift = tl.where(m == float("-inf"), 0.0, m)
        q = targets_of_piece(
            rows, steps, w_ptr, c, c < C, mask, possible, keep, even,
            SOFT, HAS_WEIGHT, SMOOTH, ACC,
        )  # fmt: skip
        e, total, mass, cross = sums_of_piece(x, q, mask, shift, z[0], SOFT, HAS_MASK, SMOOTH)
    else:
        last = end_of_body(C, head, UNIT)
        if HAS_MASK and SOFT and SMOOTH:  # K comes before the first q'
            count = count_possible(m_row, class_mask[2], inside, last, C, head, UNIT, BLOCK_C, ACC)
        even = divide(tl.full([], smoothing, ACC), tl.maximum(count, 1.0), ACC)
        shift, total, mass, cross, found = read_classes(
            rows, steps, w_ptr, inside, 0, last, C, head, keep, even,
            SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, UNIT, BLOCK_C, ACC,
        )  # fmt: skip
        if HAS_MASK and not (SOFT and SMOOTH):
            count = found
            even = divide(tl.full([], smoothing, ACC), tl.maximum(count, 1.0), ACC)

    row_shift, total = relaid(shift, SHARED), relaid(total, SHARED)
    if SOFT or SMOOTH:
        mass, cross = relaid(mass, SHARED), relaid(cross, SHARED)
    if HAS_MASK:
        count, even = relaid(count, SHARED), relaid(even, SHARED)
    loss, mass, hit = loss_of(
        row_shift, total, mass, cross, count, z_t, w_t, keep, even, SOFT, HAS_MASK, SMOOTH
    )
    if HAS_POSITION_WEIGHT:
        weight = tl.load(row_of(position_weight, p, S), mask=labelled, other=0.0).to(ACC)
        loss *= weight
        share *= weight
        scale *= weight

    # Second pass: scale · (A·p - q'), where A and q' take the scale: a product less an element. At
    # a class index the whole of it is known before, and rounded once.
    # Exactly 0 in rows without a label and for impossible classes.
    if GRAD:
        if INPLACE:
            tl.debug_barrier()  # every warp has read what this one is about to overwrite
        over, at_label, even, scale = scaled(
            row_shift, total, mass, z_t, w_t, hit, even, scale, C, SOFT, SMOOTH, ACC
        )
        over, at_label = relaid(over, SHARED), relaid(at_label, SHARED)
        if SOFT:
            scale = relaid(scale, SHARED)
        elif SMOOTH:
            even = relaid(even, SHARED)
        if ONE_BLOCK:
            write_piece(
                g_row, g[2], c, mask, possible, e, q, labelled, is_at(label, 0, BLOCK_C), at_label,
                over, scale, even, SOFT, HAS_MASK, SMOOTH, UNIT,
            )  # fmt: skip
        else:
            write_classes(
                rows, steps, g_row, g[2], w_ptr, inside, labelled, label, at_label, shift, over,
                scale, 0, last, C, head, keep, even,
                SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, UNIT, BLOCK_C, ACC,
            )  # fmt: skip

    return tl.where(labelled, loss, 0.0), tl.where(labelled, share, 0.0)


@triton.jit
def error_tile(
    r,  # (pointer, stride n, stride d), as all that follow
    y,
    g,
    weight,
    n,  # (n, d) of the elements, int64, which broadcast to the mask: see `place_of`
    d,
    mask,
    scale,  # d(total loss) / d(a weighted squared error) in float64, broadcast to the mask
    HAS_ELEMENT_WEIGHT: tl.constexpr,
    IGNORE_NAN: tl.constexpr,
    FLAT: tl.constexpr,  # all are contiguous: element i is at offset i
    GRAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """w·(r-y)² of elements of (N, D), their shares w, and scale·2·w·(r-y).

    All are 0 outside the mask, and where a missing target is. With weights the products are in
    float64: each is one rounding more. Without, that would cost registers and tell nothing.
    """
    target = tl.load(element_of(y, n, d, FLAT), mask=mask, other=0.0).to(ACC)
    error = tl.load(element_of(r, n, d, FLAT), mask=mask, other=0.0).to(ACC) - target
    pulled, factor = error, 2.0 * scale
    present = mask
    if IGNORE_NAN:
        present = mask & (target == target)
    share = present.to(ACC)
    if HAS_ELEMENT_WEIGHT:
        share = tl.load(element_of(weight, n, d, FLAT), mask=present, other=0.0).to(ACC)
        pulled = error.to(tl.float64) * share
    else:
        factor = factor.to(ACC)
    if GRAD:
        pull = tl.where(present, pulled * factor, 0.0)
        tl.store(element_of(g, n, d, FLAT), rounded(pull, g[0]), mask=mask)
    return tl.where(present, pulled * error, 0.0), share
