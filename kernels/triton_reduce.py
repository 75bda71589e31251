"""The kernel of reductions "mean" and "sum": loss, components and both gradients in one launch.

Programs [0, n_cls) take tiles of rows of logits, the others tiles of the regression head:

    loss = w_reg · Σ (r-y)² / M + w_cls · Σ rows / L      L = Σ class_weight[t] over labelled rows
    d loss/dr = w_reg · 2·(r-y) / M                       (M and L are 1 under "sum")

Each program publishes one partial sum a head; the last one to arrive, by an atomic ticket, adds
them in the order of the program ids and resets the ticket. The sum therefore repeats bit for bit.

L must be known before the first gradient is written. Each program counts the labels itself (8·N
bytes, from the L2 cache); beyond a bound in the launch table `count_kernel` counts once before.

Traffic with gradients: 2·N·C·b for the logits, 3·M·b for the regression head, 8·N for the indices.
Without: N·C·b + 2·M·b + 8·N. `DEFERRED` launches the same kernel in the backward pass, to write
gradients for a `grad_output` that is read on the device, and no loss.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from fused_loss.kernels.triton_tiles import count_labels, divide, rounded, row_tile

COUNT_BLOCK = constexpr(1024)
PARTIAL_BLOCK = constexpr(1024)


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
def error_tile(
    r_ptr,
    y_ptr,
    g_ptr,
    i,  # element indices, int64, any shape
    mask,
    D,
    r_stride_n,
    r_stride_d,
    y_stride_n,
    y_stride_d,
    g_stride_n,
    g_stride_d,
    scale,  # d(total loss) / d((r-y)²), broadcast to i
    FLAT: tl.constexpr,  # all three are contiguous: element i is at offset i
    GRAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """(r-y)² of the elements i of (N, D), and scale·2·(r-y); 0 outside the mask."""
    if FLAT:
        r_at, y_at, g_at = i, i, i
    else:
        n, d = i // D, i % D
        r_at = n * r_stride_n + d * r_stride_d
        y_at = n * y_stride_n + d * y_stride_d
        g_at = n * g_stride_n + d * g_stride_d
    r = tl.load(r_ptr + r_at, mask=mask, other=0.0).to(ACC)
    y = tl.load(y_ptr + y_at, mask=mask, other=0.0).to(ACC)
    error = r - y
    if GRAD:
        tl.store(g_ptr + g_at, rounded(error * (2.0 * scale), g_ptr), mask=mask)
    return error * error


@triton.jit
def last_to_arrive(ticket_ptr):
    """Whether every other program has published; resets the ticket for the next launch."""
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def count_kernel(
    denominator_ptr,  # () in ACC
    partials_ptr,  # (programs,) in ACC
    ticket_ptr,
    t_ptr,  # (N, S)
    class_weight_ptr,
    positions,
    chunk,  # positions a program
    S,
    C,
    t_stride_n,
    t_stride_s,
    ignore_index,
    HAS_WEIGHT: tl.constexpr,
    ACC: tl.constexpr,
):
    """The denominator of "mean" for class indices."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    first = pid.to(tl.int64) * chunk
    last = tl.minimum(first + chunk, positions)
    count = count_labels(
        t_ptr, class_weight_ptr, first, last, S, t_stride_n, t_stride_s, C, ignore_index,
        HAS_WEIGHT, COUNT_BLOCK, ACC,
    )  # fmt: skip
    tl.store(partials_ptr + pid, count)
    if last_to_arrive(ticket_ptr):
        total = tl.zeros([], ACC)
        for start in range(0, programs, PARTIAL_BLOCK):
            i = start + tl.arange(0, PARTIAL_BLOCK)
            counts = tl.load(partials_ptr + i, mask=i < programs, other=0.0, cache_modifier=".cg")
            total += tl.sum(counts, 0)
        tl.store(denominator_ptr, total)


@triton.jit
def reduce_kernel(
    loss_ptr,  # ()
    components_ptr,  # (2,)
    partials_ptr,  # (2, programs) in ACC: sums, labels
    ticket_ptr,  # () int32, 0 between launches
    denominator_ptr,  # () in ACC, from count_kernel
    grad_output_ptr,  # ()
    weights_ptr,  # () alpha or (2,)
    class_weight_ptr,  # (C,)
    r_ptr,  # (N, D)
    y_ptr,
    r_grad_ptr,
    z_ptr,  # (N, C, S)
    t_ptr,  # (N, S) or (N, C, S)
    z_grad_ptr,
    n_cls,
    elements,  # M
    D,
    r_stride_n,
    r_stride_d,
    y_stride_n,
    y_stride_d,
    r_grad_stride_n,
    r_grad_stride_d,
    positions,  # N·S
    S,
    C,
    z_stride_n,
    z_stride_c,
    z_stride_s,
    z_grad_stride_n,
    z_grad_stride_c,
    z_grad_stride_s,
    t_stride_n,
    t_stride_c,
    t_stride_s,
    weights_stride,
    ignore_index,
    w_reg: "fp64",
    w_cls: "fp64",
    smoothing: "fp64",
    HAS_REGRESSION: tl.constexpr,
    HAS_CLASSIFICATION: tl.constexpr,
    MEAN: tl.constexpr,
    WEIGHTS: tl.constexpr,  # "scalars", "alpha", "pair"
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr,
    COUNTED: tl.constexpr,  # denominator_ptr holds L
    GRAD_R: tl.constexpr,
    GRAD_Z: tl.constexpr,
    DEFERRED: tl.constexpr,
    FLAT: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC: tl.constexpr,
):
    """See the module's docstring."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    reg, cls = head_weights(weights_ptr, weights_stride, w_reg, w_cls, WEIGHTS, ACC)
    r_scale, z_scale = reg, cls
    if DEFERRED:
        grad_output = tl.load(grad_output_ptr).to(ACC)
        r_scale *= grad_output
        z_scale *= grad_output
    value = tl.zeros([], ACC)
    labels = tl.zeros([], ACC)

    if HAS_CLASSIFICATION:
        if pid < n_cls:
            if GRAD_Z and MEAN:
                if SOFT:
                    denominator = tl.full([], positions, ACC)
                elif COUNTED:
                    denominator = tl.load(denominator_ptr)
                else:
                    denominator = count_labels(
                        t_ptr, class_weight_ptr, 0, positions, S, t_stride_n, t_stride_s, C,
                        ignore_index, HAS_WEIGHT, COUNT_BLOCK, ACC,
                    )  # fmt: skip
                # Nothing labelled: the loss is NaN, the gradient 0.
                z_scale = tl.where(denominator == 0.0, 0.0, divide(z_scale, denominator, ACC))
            keep = tl.full([], 1.0 - smoothing, ACC)
            even = divide(tl.full([], smoothing, ACC), tl.full([], C, ACC), ACC)
            losses = tl.zeros([ROWS], ACC)
            row_labels = tl.zeros([ROWS], ACC)
            for tile in range(pid, tl.cdiv(positions, ROWS), n_cls):
                p = tl.full([], tile, tl.int64) * ROWS + tl.arange(0, ROWS)
                tile_losses, tile_labels = row_tile(
                    z_ptr, t_ptr, z_grad_ptr, class_weight_ptr, p, p < positions,
                    z_scale + tl.zeros([ROWS], ACC), S, C,
                    z_stride_n, z_stride_c, z_stride_s,
                    z_grad_stride_n, z_grad_stride_c, z_grad_stride_s,
                    t_stride_n, t_stride_c, t_stride_s, ignore_index, keep, even,
                    SOFT, HAS_WEIGHT, SMOOTH, GRAD_Z, ONE_BLOCK, BLOCK_C, ACC,
                )  # fmt: skip
                losses += tile_losses
                row_labels += tile_labels
            value = tl.sum(losses, 0)
            labels = tl.sum(row_labels, 0)

    if HAS_REGRESSION:
        if pid >= n_cls:
            if MEAN:
                r_scale = divide(r_scale, tl.full([], elements, ACC), ACC)
            errors = tl.zeros([BLOCK_M], ACC)
            for tile in range(pid - n_cls, tl.cdiv(elements, BLOCK_M), programs - n_cls):
                i = tl.full([], tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
                errors += error_tile(
                    r_ptr, y_ptr, r_grad_ptr, i, i < elements, D,
                    r_stride_n, r_stride_d, y_stride_n, y_stride_d,
                    r_grad_stride_n, r_grad_stride_d, r_scale, FLAT, GRAD_R, ACC,
                )  # fmt: skip
            value = tl.sum(errors, 0)

    if not DEFERRED:
        tl.store(partials_ptr + pid, value)
        tl.store(partials_ptr + programs + pid, labels)
        if last_to_arrive(ticket_ptr):
            mse = tl.zeros([], ACC)
            ce = tl.zeros([], ACC)
            total = tl.zeros([], ACC)
            for start in range(0, programs, PARTIAL_BLOCK):
                i = start + tl.arange(0, PARTIAL_BLOCK)
                at = partials_ptr + i
                values = tl.load(at, mask=i < programs, other=0.0, cache_modifier=".cg")
                counts = tl.load(at + programs, mask=i < programs, other=0.0, cache_modifier=".cg")
                ce += tl.sum(tl.where(i < n_cls, values, 0.0), 0)
                mse += tl.sum(tl.where(i >= n_cls, values, 0.0), 0)
                total += tl.sum(counts, 0)
            if MEAN:
                if SOFT:
                    total = tl.full([], positions, ACC)
                mse = divide(mse, tl.full([], elements, ACC), ACC)
                # Smoothed targets of weight 0 leave a sum that is not 0: that is NaN too.
                ce = tl.where(total == 0.0, float("nan"), divide(ce, total, ACC))
            if HAS_REGRESSION and HAS_CLASSIFICATION:
                tl.store(components_ptr, mse)
                tl.store(components_ptr + 1, ce)
                tl.store(loss_ptr, reg * mse + cls * ce)
            elif HAS_REGRESSION:
                tl.store(loss_ptr, mse)
            else:
                tl.store(loss_ptr, ce)
