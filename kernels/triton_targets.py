"""What is read of the targets: class indices, probabilities, class weights, masks of classes."""

import triton
import triton.language as tl


@triton.jit
def class_targets(
    q_row,  # (ROWS, 1) start of each row's probabilities
    c,  # (1, BLOCK_C) classes
    mask,  # (ROWS, BLOCK_C)
    possible,  # (ROWS, BLOCK_C), or `mask` where every class is
    w,  # (1, BLOCK_C) class weights, 1 where there are none
    q_stride_c,
    keep,  # 1-ε
    even,  # (ROWS, 1) ε/K
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """q' of probability targets, (ROWS, BLOCK_C); 0 outside the row."""
    q = tl.load(q_row + c * q_stride_c, mask=mask, other=0.0).to(ACC)
    if SMOOTH:
        q = q * keep + tl.where(possible, even, 0.0)
    return tl.where(mask, q * w, 0.0)


@triton.jit
def class_weights(w_ptr, c, there, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    """The weights of classes c, (1, BLOCK_C); 0 for those that are not there."""
    if HAS_WEIGHT:
        return tl.load(w_ptr + c, mask=there, other=0.0).to(ACC)
    else:
        return there.to(ACC)


@triton.jit
def possible_classes(m_row, m_stride_c, c, mask, HAS_MASK: tl.constexpr):
    """Which classes c of each row are possible, (ROWS, BLOCK_C); `mask` where all are."""
    if HAS_MASK:
        return mask & (tl.load(m_row + c * m_stride_c, mask=mask, other=0) != 0)
    else:
        return mask


@triton.jit
def weighted_logits(q, centred, mask, HAS_MASK: tl.constexpr):
    """Σ_c q·(z - shift), (ROWS,); with a mask of classes, 0 · log 0 = 0, and inf · 0 = 0 always."""
    mask = mask & (centred != 0.0)
    if HAS_MASK:
        mask = mask & ((q != 0.0) | (centred != float("-inf")))
    return tl.sum(tl.where(mask, q * centred, 0.0), 1)


@triton.jit
def labels_of(
    t_row,  # (ROWS,) start of each row's targets
    w_ptr,
    inside,  # (ROWS,)
    C,
    ignore_index,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Of class indices t, each (ROWS,): whether there is one, t, whether it is legal, its weight.

    The weight of an illegal index is NaN, and so its loss and its gradient. Rows of probabilities
    are all labelled, with a weight of 1.
    """
    labelled = inside
    legal = inside
    label = tl.zeros(inside.shape, tl.int64)
    share = tl.where(inside, 1.0, 0.0).to(ACC)
    if not SOFT:
        label = tl.load(t_row, mask=inside, other=0).to(tl.int64)
        labelled = inside & (label != ignore_index)
        legal = labelled & (label >= 0) & (label < C)
        if HAS_WEIGHT:
            share = tl.load(w_ptr + label, mask=legal, other=float("nan")).to(ACC)
        else:
            share = tl.where(legal, 1.0, float("nan")).to(ACC)
    return labelled, label, legal, share


@triton.jit
def logit_of(
    z_row,
    m_row,
    z_stride_c,
    m_stride_c,
    label,
    legal,
    SOFT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    ACC: tl.constexpr,
):
    """The logit of each class index, (ROWS,): -inf if it is impossible, 0 if there is none."""
    z_t = tl.zeros(label.shape, ACC)
    if not SOFT:
        z_t = tl.load(z_row + label * z_stride_c, mask=legal, other=0.0).to(ACC)
        if HAS_MASK:
            reached = tl.load(m_row + label * m_stride_c, mask=legal, other=1) != 0
            z_t = tl.where(reached, z_t, float("-inf"))
    return z_t
