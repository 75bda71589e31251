"""The kernel of reductions "mean" and "sum": loss, components and both gradients in one launch.

Programs [0, n_cls) take tiles of rows of logits, the others tiles of the regression head:

    loss = w_reg · Σ w·(r-y)² / M + w_cls · Σ w·rows / L
    d loss/dr = w_reg · 2·w·(r-y) / M

Each program publishes two partial sums, of its losses and of its shares in the denominator; the
last one to arrive, by an atomic ticket, adds them in the order of the program ids and resets the
ticket. The sum therefore repeats bit for bit.

M and L must be known before the first gradient is written. `R_DENOMINATOR` and `Z_DENOMINATOR` say
where they come from: "number", a scalar that the host knows (1 under "sum"); "tensor", the
caller's; "counted", from `count_kernel`, launched before; "own", each program counts for itself.
For the last two a sum of 0 means that nothing is labelled.

Few long rows are split (`SPLIT`): `slices_kernel` has read them in slices, and a program here
writes the gradient of one, or without a gradient finds the loss of a row (see `triton_split`).

Traffic with gradients: 2·N·C·b for the logits, 3·M·b for the regression head, 8·N for the indices.
Without: N·C·b + 2·M·b + 8·N. `DEFERRED` launches the same kernel in the backward pass, to write
gradients for a `grad_output` that is read on the device, and no loss.
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_counts import (
    COUNT_BLOCK,
    count_elements,
    count_labels,
    last_to_arrive,
    sum_partials,
)
from fused_loss.kernels.triton_math import (
    head_weights,
    mean_of,
    narrowed,
    place_of,
    tiles_of,
)
from fused_loss.kernels.triton_split import slice_tile
from fused_loss.kernels.triton_tiles import error_tile, row_tile


@triton.jit
def add_errors(
    value,  # float64: weighted errors
    shares,
    errors,  # (BLOCK_M,): errors without weights
    error_shares,
    r,
    y,
    r_grad,
    element_weight,
    tile,
    elements,
    D,
    scale,
    WHOLE: tl.constexpr,  # the tile has no mask, and moves vectors
    HAS_ELEMENT_WEIGHT: tl.constexpr,
    IGNORE_NAN: tl.constexpr,
    FLAT: tl.constexpr,
    GRAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """The first four, each plus what a tile of BLOCK_M elements of the regression head has of it.

    With weights its sum is in float64, of which registers hold no tile.
    """
    BLOCK_M: tl.constexpr = errors.shape[0]
    i = tl.full([], tile, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask = tl.full([BLOCK_M], True, tl.int1) if WHOLE else i < elements
    n, d = place_of(i, elements, D, FLAT)
    tile_errors, tile_shares = error_tile(
        r, y, r_grad, element_weight, n, d, mask, scale,
        HAS_ELEMENT_WEIGHT, IGNORE_NAN, FLAT, GRAD, ACC,
    )  # fmt: skip
    if HAS_ELEMENT_WEIGHT:
        value += tl.sum(tile_errors, 0)
        shares += tl.sum(tile_shares.to(tl.float64), 0)
    else:
        errors += tile_errors
        error_shares += tile_shares
    return value, shares, errors, error_shares


@triton.jit
def reduce_kernel(
    loss_ptr,  # ()
    components_ptr,  # (3,): mse, ce, mse - ce
    partials_ptr,  # (2, programs) float64: losses, shares
    ticket_ptr,  # () int32, 0 between launches
    slices_ptr,  # what `slices_kernel` has published
    grad_output_ptr,  # ()
    weights_ptr,  # () alpha or (2,)
    class_weight_ptr,  # (C,)
    r_denominator_ptr,  # ()
    z_denominator_ptr,  # ()
    r_ptr,  # (N, D)
    y_ptr,
    r_grad_ptr,
    element_weight_ptr,
    z_ptr,  # (N, C, S)
    t_ptr,  # (N, S) or (N, C, S)
    z_grad_ptr,
    class_mask_ptr,  # (N, C, S) uint8
    position_weight_ptr,  # (N, S)
    n_cls,
    slices,  # a row
    columns,  # a slice
    elements,  # N·D
    D,
    r_stride_n,
    r_stride_d,
    y_stride_n,
    y_stride_d,
    r_grad_stride_n,
    r_grad_stride_d,
    element_weight_stride_n,
    element_weight_stride_d,
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
    class_mask_stride_n,
    class_mask_stride_c,
    class_mask_stride_s,
    position_weight_stride_n,
    position_weight_stride_s,
    weights_stride,
    ignore_index,
    w_reg: "fp64",
    w_cls: "fp64",
    smoothing: "fp64",
    r_denominator: "fp64",
    z_denominator: "fp64",
    of_nothing: "fp64",
    HAS_REGRESSION: tl.constexpr,
    HAS_CLASSIFICATION: tl.constexpr,
    WEIGHTS: tl.constexpr,  # "scalars", "alpha", "pair"
    R_DENOMINATOR: tl.constexpr,
    Z_DENOMINATOR: tl.constexpr,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_POSITION_WEIGHT: tl.constexpr,
    HAS_ELEMENT_WEIGHT: tl.constexpr,
    IGNORE_NAN: tl.constexpr,
    SMOOTH: tl.constexpr,
    GRAD_R: tl.constexpr,
    GRAD_Z: tl.constexpr,
    INPLACE: tl.constexpr,
    DEFERRED: tl.constexpr,
    FLAT: tl.constexpr,
    SPLIT: tl.constexpr,  # 0, or how many slices a row has at most
    ONE_BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    STAGES: tl.constexpr,  # 2: the next row is read while this one is worked on
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC: tl.constexpr,
):
    """See the module's docstring."""
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    r = (r_ptr, r_stride_n, r_stride_d)
    y = (y_ptr, y_stride_n, y_stride_d)
    r_grad = (r_grad_ptr, r_grad_stride_n, r_grad_stride_d)
    element_weight = (element_weight_ptr, element_weight_stride_n, element_weight_stride_d)
    z = (z_ptr, z_stride_n, z_stride_c, z_stride_s)
    t = (t_ptr, t_stride_n, t_stride_c, t_stride_s)
    z_grad = (z_grad_ptr, z_grad_stride_n, z_grad_stride_c, z_grad_stride_s)
    class_mask = (class_mask_ptr, class_mask_stride_n, class_mask_stride_c, class_mask_stride_s)
    position_weight = (position_weight_ptr, position_weight_stride_n, 0, position_weight_stride_s)
    reg, cls = head_weights(weights_ptr, weights_stride, w_reg, w_cls, WEIGHTS, tl.float64)
    r_scale, z_scale = reg, cls
    if DEFERRED:
        grad_output = tl.load(grad_output_ptr).to(tl.float64)
        r_scale *= grad_output
        z_scale *= grad_output
    value = tl.zeros([], tl.float64)
    shares = tl.zeros([], tl.float64)

    if HAS_CLASSIFICATION:
        if pid < n_cls:
            if GRAD_Z:
                L = tl.full([], z_denominator, tl.float64)
                if Z_DENOMINATOR == "own":
                    L = count_labels(
                        t, position_weight, class_weight_ptr, 0, positions, S, C, ignore_index,
                        SOFT, HAS_WEIGHT, HAS_POSITION_WEIGHT, COUNT_BLOCK, ACC,
                    )  # fmt: skip
                elif Z_DENOMINATOR != "number":
                    L = tl.load(z_denominator_ptr).to(tl.float64)
                z_scale /= L
                if (Z_DENOMINATOR == "own") or (Z_DENOMINATOR == "counted"):
                    z_scale = tl.where(L == 0.0, 0.0, z_scale)
            if SPLIT:
                losses, row_shares = slice_tile(
                    slices_ptr, z, t, z_grad, class_mask, position_weight, class_weight_ptr, pid,
                    z_scale, positions, slices, columns, S, C, ignore_index, smoothing,
                    SOFT, HAS_WEIGHT, HAS_MASK, HAS_POSITION_WEIGHT, SMOOTH, GRAD_Z,
                    SPLIT, UNIT, BLOCK_C, ACC,
                )  # fmt: skip
            else:
                losses = tl.zeros([ROWS], tl.float64)
                row_shares = tl.zeros([ROWS], tl.float64)
                for tile in tl.range(pid, tiles_of(positions, ROWS), n_cls, num_stages=STAGES):
                    p = tl.full([], tile, tl.int64) * ROWS + tl.arange(0, ROWS)
                    tile_losses, tile_shares = row_tile(
                        z, t, z_grad, class_mask, position_weight, class_weight_ptr,
                        narrowed(p, positions, S), p < positions,
                        tl.full([ROWS], 1.0, tl.float64) * z_scale, S, C, ignore_index, smoothing,
                        SOFT, HAS_WEIGHT, HAS_MASK, HAS_POSITION_WEIGHT, SMOOTH, GRAD_Z, INPLACE,
                        ONE_BLOCK, UNIT, BLOCK_C, ACC,
                    )  # fmt: skip
                    losses += tile_losses
                    row_shares += tile_shares
            value = tl.sum(losses, 0)
            shares = tl.sum(row_shares.to(tl.float64), 0)

    if HAS_REGRESSION:
        if pid >= n_cls:
            if GRAD_R:
                M = tl.full([], r_denominator, tl.float64)
                if R_DENOMINATOR == "own":
                    M = count_elements(
                        y, element_weight, 0, elements, D,
                        HAS_ELEMENT_WEIGHT, IGNORE_NAN, FLAT, COUNT_BLOCK, ACC,
                    )  # fmt: skip
                elif R_DENOMINATOR != "number":
                    M = tl.load(r_denominator_ptr).to(tl.float64)
                r_scale /= M
                if (R_DENOMINATOR == "own") or (R_DENOMINATOR == "counted"):
                    r_scale = tl.where(M == 0.0, 0.0, r_scale)
            errors = tl.zeros([BLOCK_M], ACC)
            error_shares = tl.zeros([BLOCK_M], ACC)
            whole = elements // BLOCK_M  # tiles without a mask, which move vectors, then the rest
            first = pid - n_cls
            step = programs - n_cls
            for tile in range(first, whole, step):
                value, shares, errors, error_shares = add_errors(
                    value, shares, errors, error_shares, r, y, r_grad, element_weight, tile,
                    elements, D, r_scale, True, HAS_ELEMENT_WEIGHT, IGNORE_NAN, FLAT, GRAD_R, ACC,
                )  # fmt: skip
            if (elements % BLOCK_M != 0) & (first == whole % step):
                value, shares, errors, error_shares = add_errors(
                    value, shares, errors, error_shares, r, y, r_grad, element_weight, whole,
                    elements, D, r_scale, False, HAS_ELEMENT_WEIGHT, IGNORE_NAN, FLAT, GRAD_R, ACC,
                )  # fmt: skip
            value += tl.sum(errors.to(tl.float64), 0)
            shares += tl.sum(error_shares.to(tl.float64), 0)

    if not DEFERRED:
        tl.store(partials_ptr + pid, value)
        tl.store(partials_ptr + programs + pid, shares)
        if last_to_arrive(ticket_ptr):
            mse, ce = sum_partials(partials_ptr, n_cls, programs)
            M, L = sum_partials(partials_ptr + programs, n_cls, programs)
            mse = mean_of(mse, M, r_denominator, r_denominator_ptr, of_nothing, R_DENOMINATOR)
            ce = mean_of(ce, L, z_denominator, z_denominator_ptr, of_nothing, Z_DENOMINATOR)
            if HAS_REGRESSION and HAS_CLASSIFICATION:
                tl.store(components_ptr, mse)
                tl.store(components_ptr + 1, ce)
                tl.store(components_ptr + 2, mse - ce)
                tl.store(loss_ptr, reg * mse + cls * ce)
            elif HAS_REGRESSION:
                tl.store(loss_ptr, mse)
            else:
                tl.store(loss_ptr, ce)
