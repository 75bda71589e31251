"""Rows that several programs share, where there are fewer rows than multiprocessors.

`slices_kernel` reads: of each slice of a row its maximum m, `s = Σ exp(z - m)`, A, B and K, and of
the row z_t (see `triton_tiles`), published as (VALUES, positions, slices). `slice_tile`, in the
launch that follows, puts the slices of its row together,

    m = max m_i      s = Σ s_i · exp(m_i - m)      A = Σ A_i      B = Σ B_i + A_i · (m_i - m)

as every program of that row does, in one order, and writes the gradient of its slice. No program
waits for another; what one needs of the others was published by the launch before. Traffic:
3·N·C·b bytes as for any row longer than a block, 2 of them from memory where the rows fit L2, and
32 bytes a slice.

With a mask, smoothed probabilities need K before the first q', and K is not known before the second
launch: there the first one reads its slice twice, for A and B of the targets themselves and for
those of an even spread, and the second adds them in the shares that K gives.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from fused_loss.kernels.triton_math import divide, multiple_of, row_of
from fused_loss.kernels.triton_passes import loss_of, read_classes, scaled, write_classes
from fused_loss.kernels.triton_pieces import before_body, end_of_body
from fused_loss.kernels.triton_targets import labels_of, logit_of

VALUES = constexpr(8)  # m (0 while it is -inf), s, A, B, K, z_t, and A and B of an even spread


@triton.jit
def slices_kernel(
    slices_ptr,  # (VALUES, positions, slices) in ACC
    class_weight_ptr,  # (C,)
    z_ptr,  # (N, C, S)
    t_ptr,  # (N, S) or (N, C, S)
    class_mask_ptr,  # (N, C, S) uint8
    positions,
    slices,  # a row
    columns,  # a slice
    S,
    C,
    z_stride_n,
    z_stride_c,
    z_stride_s,
    t_stride_n,
    t_stride_c,
    t_stride_s,
    class_mask_stride_n,
    class_mask_stride_c,
    class_mask_stride_s,
    ignore_index,
    smoothing: "fp64",
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SMOOTH: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program p·slices + i reads slice i of row p."""
    pid = tl.program_id(0)
    C = multiple_of(C, UNIT)
    p = tl.full([1], pid // slices, tl.int64)
    z = (z_ptr, z_stride_n, z_stride_c, z_stride_s)
    head = before_body(z, p, S, UNIT)
    first = (pid % slices).to(tl.int64) * columns
    last = tl.minimum(first + columns, end_of_body(C, head, UNIT))
    inside = p < positions
    z_row = row_of(z, p, S, UNIT, head)
    t = (t_ptr, t_stride_n, t_stride_c, t_stride_s)
    t_row = row_of(t, p, S, UNIT, head) if SOFT else row_of(t, p, S)
    m_row = z_row
    if HAS_MASK:
        class_mask = (class_mask_ptr, class_mask_stride_n, class_mask_stride_c, class_mask_stride_s)
        m_row = row_of(class_mask, p, S, UNIT, head)
    rows, steps = (z_row, t_row, m_row), (z_stride_c, t_stride_c, class_mask_stride_c)
    even = tl.zeros([1], ACC) + divide(tl.full([], smoothing, ACC), tl.full([], C, ACC), ACC)
    keep = tl.full([], 1.0 - smoothing, ACC)
    step = positions * slices
    to = slices_ptr + pid + tl.zeros([1], tl.int32)
    w_ptr = class_weight_ptr
    if HAS_WEIGHT:
        w_ptr += head
    shift, total, mass, cross, count = read_classes(
        rows, steps, w_ptr, inside, first, last, C, head, keep, even,
        SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH and not (SOFT and HAS_MASK), UNIT, BLOCK_C, ACC,
    )  # fmt: skip
    if SOFT and SMOOTH and HAS_MASK:
        _, _, spread, spread_cross, _ = read_classes(
            rows, steps, w_ptr, inside, first, last, C, head, keep, even,
            False, HAS_WEIGHT, HAS_MASK, True, UNIT, BLOCK_C, ACC,
        )  # fmt: skip
        tl.store(to + 6 * step, spread)
        tl.store(to + 7 * step, spread_cross)
    _, label, legal, _ = labels_of(t_row, w_ptr, inside, C, ignore_index, SOFT, False, ACC)
    label -= head
    z_t = logit_of(z_row, m_row, z_stride_c, class_mask_stride_c, label, legal, SOFT, HAS_MASK, ACC)
    tl.store(to, shift)
    tl.store(to + step, total)
    tl.store(to + 2 * step, mass)
    tl.store(to + 3 * step, cross)
    tl.store(to + 4 * step, count)
    tl.store(to + 5 * step, z_t)


@triton.jit
def whole(of, step, there, moved, ACC: tl.constexpr):
    """A and B of the row, (1,), from those of its slices: at `of`, and `step` further."""
    masses = tl.load(of, mask=there, other=0.0)
    crosses = tl.load(of + step, mask=there, other=0.0)
    carried = tl.where(moved == 0.0, 0.0, masses * moved)  # inf · 0
    cross = tl.where(there, crosses + carried, 0.0).to(tl.float64)
    return tl.sum(masses.to(tl.float64), 1).to(ACC), tl.sum(cross, 1).to(ACC)


@triton.jit
def slice_tile(
    slices_ptr,  # (VALUES, positions, slices) in ACC
    z,  # (pointer, stride n, stride c, stride s), as all that follow
    t,
    g,
    class_mask,
    position_weight,
    w_ptr,
    pid,  # p·slices + i where GRAD, else p
    scale,  # () d(total loss) / d(the row's weighted loss), in float64
    positions,
    slices,
    columns,
    S,
    C,
    ignore_index,
    smoothing,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_POSITION_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    GRAD: tl.constexpr,
    MOST: tl.constexpr,  # slices at most
    UNIT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """The loss and the share of row p, (1,), 0 for all slices but the first; writes the gradient.

    In place too: of the logits a program reads nothing but what it overwrites itself.
    """
    row = pid // slices if GRAD else pid
    piece = pid % slices if GRAD else 0
    i = tl.arange(0, MOST)[None, :]
    of = slices_ptr + row * slices + i
    step = positions * slices
    there = i < slices
    shifts = tl.load(of, mask=there, other=0.0)
    totals = tl.load(of + step, mask=there, other=0.0)
    m = tl.max(tl.where(totals == 0.0, float("-inf"), shifts), 1)
    shift = tl.where(m == float("-inf"), 0.0, m)
    moved = shifts - shift[:, None]
    terms = tl.where(totals == 0.0, 0.0, totals * tl.exp(moved))  # 0 · inf
    total = tl.sum(terms.to(tl.float64), 1).to(ACC)
    count = tl.full([1], C, ACC)
    if HAS_MASK:
        count = tl.sum(tl.load(of + 4 * step, mask=there, other=0.0), 1)
    even = divide(tl.full([], smoothing, ACC), tl.maximum(count, 1.0), ACC)
    keep = tl.full([], 1.0 - smoothing, ACC)
    mass = tl.zeros([1], ACC)
    cross = tl.zeros([1], ACC)
    if SOFT or SMOOTH:
        mass, cross = whole(of + 2 * step, step, there, moved, ACC)
        if SOFT and SMOOTH and HAS_MASK:
            spread, spread_cross = whole(of + 6 * step, step, there, moved, ACC)
            mass = keep * mass + even * spread
            cross = tl.where(keep == 0.0, 0.0, keep * cross) + even * spread_cross  # 0 · inf
    z_t = tl.load(slices_ptr + row * slices + tl.zeros([1], tl.int32) + 5 * step)

    p = tl.full([1], row, tl.int64)
    inside = p < positions
    C = multiple_of(C, UNIT)
    head = before_body(z, p, S, UNIT)
    t_row = row_of(t, p, S, UNIT, head) if SOFT else row_of(t, p, S)
    labelled, label, _, share = labels_of(
        t_row, w_ptr, inside, C, ignore_index, SOFT, HAS_WEIGHT, ACC
    )
    loss, mass, hit = loss_of(
        shift, total, mass, cross, count, z_t, share, keep, even, SOFT, HAS_MASK, SMOOTH
    )
    row_scale = scale + tl.zeros([1], tl.float64)
    w_t = share
    if HAS_POSITION_WEIGHT:
        weight = tl.load(row_of(position_weight, p, S), mask=labelled, other=0.0).to(ACC)
        loss *= weight
        share *= weight
        row_scale *= weight
    if GRAD:
        z_row = row_of(z, p, S, UNIT, head)
        m_row = row_of(class_mask, p, S, UNIT, head) if HAS_MASK else z_row
        if HAS_WEIGHT:
            w_ptr += head
        first = piece.to(tl.int64) * columns
        last = tl.minimum(first + columns, end_of_body(C, head, UNIT))
        over, at_label, even, row_scale = scaled(
            shift, total, mass, z_t, w_t, hit, even, row_scale, C, SOFT, SMOOTH, ACC
        )
        write_classes(
            (z_row, t_row, m_row), (z[2], t[2], class_mask[2]), row_of(g, p, S, UNIT, head), g[2],
            w_ptr, inside, labelled, label - head, at_label, shift, over, row_scale,
            first, last, C, head, keep, even,
            SOFT, HAS_WEIGHT, HAS_MASK, SMOOTH, UNIT, BLOCK_C, ACC,
        )  # fmt: skip
    counted = labelled & (piece == 0)
    return tl.where(counted, loss, 0.0), tl.where(counted, share, 0.0)
