"""The arithmetic that both kernels share: a tile of rows of logits, and a count of labels.

For a row of logits z with maximum m and `s = Σ_c exp(z_c - m)`, and smoothed, class-weighted
targets `q'_c = w_c · ((1-ε)·target_c + ε/C)` of mass `A = Σ_c q'_c`:

    loss      = -Σ_c q'_c · log p_c = A · log s - Σ_c q'_c · (z_c - m)
    d loss/dz = A · exp(z - m) / s - q'

For a class index t without smoothing `q'` is `w_t` at t and 0 elsewhere. Both terms of the loss are
of one sign, so nothing cancels.

A row that fits one block (`ONE_BLOCK`) is read once and kept in registers until its gradient is
written: 2·C·b bytes. A longer row is read block after block with a running (m, s), then read again,
from the L2 cache where it fits, for the gradient: 3·C·b bytes, 2 of them from memory.

A position p = n·S + s of logits (N, C, S) lies at n·stride_n + s·stride_s; S is 1 for (N, C).
"""

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
def count_labels(
    t_ptr,  # class indices at n·t_stride_n + s·t_stride_s
    w_ptr,  # (C,) class weights
    first,
    last,  # positions [first, last)
    S,
    t_stride_n,
    t_stride_s,
    C,
    ignore_index,
    HAS_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Σ class_weight[t] over the labelled positions of [first, last), or their number."""
    total = tl.zeros([BLOCK], ACC)
    for start in range(first, last, BLOCK):
        p = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = p < last
        t = tl.load(t_ptr + (p // S) * t_stride_n + (p % S) * t_stride_s, mask=inside, other=0)
        t = t.to(tl.int64)
        labelled = inside & (t != ignore_index)
        if HAS_WEIGHT:
            legal = labelled & (t >= 0) & (t < C)
            total += tl.load(w_ptr + t, mask=legal, other=0.0).to(ACC)
        else:
            total += labelled.to(ACC)
    return tl.sum(total, 0)


@triton.jit
def class_targets(
    q_ptr,  # (ROWS, 1) start of each row's probabilities
    c,  # (1, BLOCK_C) classes
    mask,  # (ROWS, BLOCK_C)
    w,  # (1, BLOCK_C) class weights, 1 where there are none
    q_stride_c,
    keep,
    even,
    SMOOTH: tl.constexpr,
    ACC: tl.constexpr,
):
    """q' of probability targets, (ROWS, BLOCK_C); 0 outside the row."""
    q = tl.load(q_ptr + c * q_stride_c, mask=mask, other=0.0).to(ACC)
    if SMOOTH:
        q = q * keep + even
    return tl.where(mask, q * w, 0.0)


@triton.jit
def class_weights(w_ptr, c, C, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    """The weights of classes c, (1, BLOCK_C); 0 outside [0, C)."""
    if HAS_WEIGHT:
        return tl.load(w_ptr + c, mask=c < C, other=0.0).to(ACC)
    else:
        return (c < C).to(ACC)


@triton.jit
def row_tile(
    z_ptr,
    t_ptr,  # class indices, or probabilities in the shape of z
    g_ptr,  # gradient, written where GRAD
    w_ptr,
    p,  # (ROWS,) positions, int64
    inside,  # (ROWS,) bool: p < the number of positions
    scale,  # (ROWS,) d(total loss) / d(this row's loss), in ACC
    S,
    C,
    z_stride_n,
    z_stride_c,
    z_stride_s,
    g_stride_n,
    g_stride_c,
    g_stride_s,
    t_stride_n,
    t_stride_c,
    t_stride_s,
    ignore_index,
    keep,  # 1-ε, in ACC
    even,  # ε/C
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    GRAD: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACC: tl.constexpr,
):
    """Losses (ROWS,) and labels (ROWS,) of a tile of rows, and their gradient.

    The label of a row is what it adds to the denominator of "mean": `class_weight[t]`, or 1.
    """
    n = p // S
    s = p % S
    z_row = z_ptr + n * z_stride_n + s * z_stride_s  # (ROWS,)
    t_row = t_ptr + n * t_stride_n + s * t_stride_s
    c = tl.arange(0, BLOCK_C)[None, :].to(tl.int64)
    w = class_weights(w_ptr, c, C, HAS_WEIGHT, ACC)

    # Class index: t, whether there is one, whether it is legal, and its weight: NaN for an illegal
    # one, and so its loss and its gradient. Positions without a label are masked at the end.
    labelled = inside
    legal = inside
    t = tl.zeros_like(p)
    w_t = tl.where(inside, 1.0, 0.0).to(ACC)
    if not SOFT:
        t = tl.load(t_row, mask=inside, other=0).to(tl.int64)
        labelled = inside & (t != ignore_index)
        legal = labelled & (t >= 0) & (t < C)
        if HAS_WEIGHT:
            w_t = tl.load(w_ptr + t, mask=legal, other=float("nan")).to(ACC)
        else:
            w_t = tl.where(legal, 1.0, float("nan")).to(ACC)

    # First pass: m, s, A = Σ q' and B = Σ q'·(z - m); for class indices A and B hold the smoothed
    # part Σ w and Σ w·(z - m), scaled below. `shift` is m, or 0 while m is -inf.
    if ONE_BLOCK:
        mask = inside[:, None] & (c < C)
        z = tl.load(z_row[:, None] + c * z_stride_c, mask=mask, other=float("-inf")).to(ACC)
        m = tl.max(z, 1)
        shift = tl.where(m == float("-inf"), 0.0, m)
        centred = z - shift[:, None]
        e = tl.exp(centred)
        total = tl.sum(e, 1)
        if SOFT:
            q = class_targets(t_row[:, None], c, mask, w, t_stride_c, keep, even, SMOOTH, ACC)
            mass = tl.sum(q, 1)
            cross = tl.sum(tl.where(mask, q * centred, 0.0), 1)
        elif SMOOTH:
            mass = tl.sum(w, 1)
            cross = tl.sum(tl.where(mask, w * centred, 0.0), 1)
    else:
        m = tl.full(p.shape, float("-inf"), ACC)
        shift = tl.zeros(p.shape, ACC)
        total = tl.zeros(p.shape, ACC)
        mass = tl.zeros(p.shape, ACC)
        cross = tl.zeros(p.shape, ACC)
        for start in range(0, C, BLOCK_C):
            k = start + c
            mask = inside[:, None] & (k < C)
            z = tl.load(z_row[:, None] + k * z_stride_c, mask=mask, other=float("-inf")).to(ACC)
            m = tl.maximum(m, tl.max(z, 1))
            new_shift = tl.where(m == float("-inf"), 0.0, m)
            centred = z - new_shift[:, None]
            carried = tl.where(total == 0.0, 0.0, total * tl.exp(shift - new_shift))  # 0 · inf
            total = carried + tl.sum(tl.exp(centred), 1)
            if SOFT:
                w = class_weights(w_ptr, k, C, HAS_WEIGHT, ACC)
                q = class_targets(t_row[:, None], k, mask, w, t_stride_c, keep, even, SMOOTH, ACC)
                cross += mass * (shift - new_shift) + tl.sum(tl.where(mask, q * centred, 0.0), 1)
                mass += tl.sum(q, 1)
            elif SMOOTH:
                w = class_weights(w_ptr, k, C, HAS_WEIGHT, ACC)
                cross += mass * (shift - new_shift) + tl.sum(tl.where(mask, w * centred, 0.0), 1)
                mass += tl.sum(tl.where(mask, w, 0.0), 1)  # Triton 3.6 cannot sum w as it is
            shift = new_shift

    log_total = tl.log(total)
    if SOFT:
        loss = mass * log_total - cross
    else:
        z_t = tl.load(z_row + t * z_stride_c, mask=legal, other=0.0).to(ACC)
        loss = w_t * (log_total - (z_t - shift))
        if SMOOTH:
            hit = keep * w_t  # q' is even·w, and at t also this
            loss = keep * loss + even * (mass * log_total - cross)
            mass = hit + even * mass
        else:
            hit = w_t
            mass = w_t

    # Second pass: scale · (A·p - q'); exactly 0 in rows without a label.
    if GRAD:
        g_row = g_ptr + n * g_stride_n + s * g_stride_s
        over = divide(mass, total, ACC)
        if ONE_BLOCK:
            g = e * over[:, None]
            if SOFT:
                g -= q
            else:
                if SMOOTH:
                    g -= even * w
                g -= tl.where(c == t[:, None], hit[:, None], 0.0)
            g = tl.where(labelled[:, None], g * scale[:, None], 0.0)
            tl.store(g_row[:, None] + c * g_stride_c, rounded(g, g_ptr), mask=mask)
        else:
            for start in range(0, C, BLOCK_C):
                k = start + c
                mask = inside[:, None] & (k < C)
                z = tl.load(z_row[:, None] + k * z_stride_c, mask=mask, other=float("-inf")).to(ACC)
                g = tl.exp(z - shift[:, None]) * over[:, None]
                if SOFT:
                    w = class_weights(w_ptr, k, C, HAS_WEIGHT, ACC)
                    g -= class_targets(
                        t_row[:, None], k, mask, w, t_stride_c, keep, even, SMOOTH, ACC
                    )
                else:
                    if SMOOTH:
                        g -= even * class_weights(w_ptr, k, C, HAS_WEIGHT, ACC)
                    g -= tl.where(k == t[:, None], hit[:, None], 0.0)
                g = tl.where(labelled[:, None], g * scale[:, None], 0.0)
                tl.store(g_row[:, None] + k * g_stride_c, rounded(g, g_ptr), mask=mask)

    return tl.where(labelled, loss, 0.0), tl.where(labelled, w_t, 0.0)
