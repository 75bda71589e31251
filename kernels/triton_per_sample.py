"""The kernel of reduction "none": one loss a sample, and the gradient for a `grad_output` (N,).

    loss[n] = w_reg · Σ_d w·(r-y)² / M[n] + w_cls · Σ_s w·rows / L[n]

M[n] and L[n] count what is labelled in the sample, 1 where nothing is; weights do not enter them.

With one position a sample (logits (N, C), and `cross_entropy` per position) a program takes tiles
of ROWS samples. With more it takes one sample at a time and walks its positions in tiles of ROWS.

The forward pass reads only; the backward launches the same kernel with `DEFERRED`, which reads
`grad_output` (any stride, 0 included) on the device, writes both gradients, and no loss. Traffic of
the two together: 3·N·C·b.
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_counts import count_labels
from fused_loss.kernels.triton_math import (
    element_of,
    head_weights,
    narrowed,
    place_of,
    tiles_of,
)
from fused_loss.kernels.triton_tiles import error_tile, row_tile


@triton.jit
def per_sample_kernel(
    loss_ptr,  # (N,)
    components_ptr,  # (3, N): mse, ce, mse - ce
    grad_output_ptr,  # (N,) at n // grad_output_inner · stride_n + n % grad_output_inner · stride_s
    weights_ptr,
    class_weight_ptr,
    r_ptr,  # (N, D)
    y_ptr,
    r_grad_ptr,
    element_weight_ptr,
    z_ptr,  # (n, C, S)
    t_ptr,
    z_grad_ptr,
    class_mask_ptr,
    position_weight_ptr,
    samples,  # N: n, or n·S where each position is a sample
    positions,  # n·S
    D,
    r_stride_n,
    r_stride_d,
    y_stride_n,
    y_stride_d,
    r_grad_stride_n,
    r_grad_stride_d,
    element_weight_stride_n,
    element_weight_stride_d,
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
    grad_output_inner,
    grad_output_stride_n,
    grad_output_stride_s,
    weights_stride,
    ignore_index,
    w_reg: "fp64",
    w_cls: "fp64",
    smoothing: "fp64",
    HAS_REGRESSION: tl.constexpr,
    HAS_CLASSIFICATION: tl.constexpr,
    ONE_POSITION: tl.constexpr,
    WEIGHTS: tl.constexpr,
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
    ONE_BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SAMPLES: tl.constexpr,  # ROWS with ONE_POSITION, else 1
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):
    """See the module's docstring."""
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
    for group in range(tl.program_id(0), tiles_of(samples, SAMPLES), tl.num_programs(0)):
        n = tl.full([], group, tl.int64) * SAMPLES + tl.arange(0, SAMPLES)  # (SAMPLES,)
        inside = n < samples
        upstream = tl.full([SAMPLES], 1.0, tl.float64)
        if DEFERRED:
            grad_output = (grad_output_ptr, grad_output_stride_n, grad_output_stride_s)
            i, j = place_of(n, samples, grad_output_inner, False)
            upstream = tl.load(element_of(grad_output, i, j, False), mask=inside, other=0.0)
            upstream = upstream.to(tl.float64)
        ce = tl.zeros([SAMPLES], tl.float64)
        mse = tl.zeros([SAMPLES], tl.float64)

        if HAS_CLASSIFICATION:
            if ONE_POSITION:
                ce, _ce_share = row_tile(
                    z, t, z_grad, class_mask, position_weight, class_weight_ptr,
                    narrowed(n, positions, S), inside, cls * upstream, S, C, ignore_index,
                    smoothing,
                    SOFT, HAS_WEIGHT, HAS_MASK, HAS_POSITION_WEIGHT, SMOOTH, GRAD_Z, INPLACE,
                    ONE_BLOCK, UNIT, BLOCK_C, ACC,
                )  # fmt: skip
            else:
                first = tl.full([], group, tl.int64) * S
                last = narrowed(first + S, positions, S)
                if SOFT:
                    labels = tl.full([], S, tl.float64)
                else:
                    labels = count_labels(
                        t, position_weight, class_weight_ptr, first, last, S, C, ignore_index,
                        SOFT, False, False, 1024, ACC,
                    )  # fmt: skip
                labels = tl.maximum(labels, 1.0)
                scale = tl.sum(cls * upstream / labels, 0)
                losses = tl.zeros([ROWS], tl.float64)
                for start in range(0, S, ROWS):
                    s = start + tl.arange(0, ROWS)
                    tile_losses, _tile_shares = row_tile(
                        z, t, z_grad, class_mask, position_weight, class_weight_ptr,
                        narrowed(first + s, positions, S), s < S,
                        scale + tl.zeros([ROWS], tl.float64), S, C, ignore_index, smoothing,
                        SOFT, HAS_WEIGHT, HAS_MASK, HAS_POSITION_WEIGHT, SMOOTH, GRAD_Z, INPLACE,
                        ONE_BLOCK, UNIT, BLOCK_C, ACC,
                    )  # fmt: skip
                    losses += tile_losses
                ce += tl.sum(losses, 0) / labels

        if HAS_REGRESSION:
            columns = tl.full([SAMPLES], D, ACC)
            if IGNORE_NAN:
                columns = tl.zeros([SAMPLES], ACC)
                for start in range(0, D, BLOCK_D):
                    d = start + tl.arange(0, BLOCK_D)[None, :].to(tl.int64)
                    at = element_of(y, n[:, None], d, False)
                    mask = inside[:, None] & (d < D)
                    target = tl.load(at, mask=mask, other=float("nan")).to(ACC)
                    columns += tl.sum((target == target).to(ACC), 1)
            columns = tl.maximum(columns, 1.0)
            scale = reg * upstream / columns
            for start in range(0, D, BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)[None, :].to(tl.int64)
                mask = inside[:, None] & (d < D)
                squared, _present = error_tile(
                    r, y, r_grad, element_weight, n[:, None], d, mask, scale[:, None],
                    HAS_ELEMENT_WEIGHT, IGNORE_NAN, False, GRAD_R, ACC,
                )  # fmt: skip
                mse += tl.sum(squared, 1)
            mse /= columns

        if not DEFERRED:
            if HAS_REGRESSION and HAS_CLASSIFICATION:
                tl.store(components_ptr + n, mse, mask=inside)
                tl.store(components_ptr + samples + n, ce, mask=inside)
                tl.store(components_ptr + samples + samples + n, mse - ce, mask=inside)
                tl.store(loss_ptr + n, reg * mse + cls * ce, mask=inside)
            elif HAS_REGRESSION:
                tl.store(loss_ptr + n, mse, mask=inside)
            else:
                tl.store(loss_ptr + n, ce, mask=inside)
