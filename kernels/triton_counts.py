"""The denominators of "mean", where they are not known before a label is read.

    L = Σ classification_weight · class_weight[t] over labelled positions
    M = Σ regression_weight over the elements that are not missing

Each program of the reducing kernel counts for itself (8·N bytes of class indices, N·D·b of targets,
from the L2 cache); beyond a bound in the launch table `count_kernel` counts both once, before it.
"""

import triton
import triton.language as tl
from triton.language import constexpr

from fused_loss.kernels.triton_math import element_of, narrowed, place_of, row_of

COUNT_BLOCK = constexpr(1024)
PARTIAL_BLOCK = constexpr(1024)


@triton.jit
def count_labels(
    t,  # class indices
    position_weight,
    w_ptr,  # (C,) class weights
    first,
    last,  # positions [first, last), in a dtype that holds all
    S,
    C,
    ignore_index,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POSITION_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """L over the positions of [first, last); without weights their number."""
    total = tl.zeros([BLOCK], tl.float64 if HAS_WEIGHT or HAS_POSITION_WEIGHT else ACC)
    for start in range(first, last, BLOCK):
        p = start + tl.arange(0, BLOCK).to(tl.int64)
        labelled = p < last
        p = narrowed(p, last, S)
        share = labelled.to(ACC)
        if not SOFT:
            label = tl.load(row_of(t, p, S), mask=labelled, other=0).to(tl.int64)
            labelled = labelled & (label != ignore_index)
            share = labelled.to(ACC)
            if HAS_WEIGHT:
                legal = labelled & (label >= 0) & (label < C)
                share = tl.load(w_ptr + label, mask=legal, other=0.0).to(ACC)
        if HAS_POSITION_WEIGHT:
            share *= tl.load(row_of(position_weight, p, S), mask=labelled, other=0.0).to(ACC)
        total += share
    return tl.sum(total.to(tl.float64), 0)


@triton.jit
def count_elements(
    y,
    weight,
    first,
    last,  # elements [first, last), in a dtype that holds all
    D,
    HAS_ELEMENT_WEIGHT: tl.constexpr,
    IGNORE_NAN: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """M over the elements of [first, last)."""
    total = tl.zeros([BLOCK], tl.float64 if HAS_ELEMENT_WEIGHT else ACC)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        present = i < last
        n, d = place_of(i, last, D, FLAT)
        if IGNORE_NAN:
            target = tl.load(element_of(y, n, d, FLAT), mask=present, other=0.0).to(ACC)
            present = present & (target == target)
        if HAS_ELEMENT_WEIGHT:
            at = element_of(weight, n, d, FLAT)
            total += tl.load(at, mask=present, other=0.0).to(ACC)
        else:
            total += present.to(ACC)
    return tl.sum(total.to(tl.float64), 0)


@triton.jit
def last_to_arrive(ticket_ptr):
    """Whether every other program has published; resets the ticket for the next launch."""
    tl.debug_barrier()
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def sum_partials(partials_ptr, n_cls, programs):
    """What the programs published, in the order of their ids: of [n_cls, ...), of [0, n_cls)."""
    regression = tl.zeros([], tl.float64)
    classification = tl.zeros([], tl.float64)
    for start in range(0, programs, PARTIAL_BLOCK):
        i = start + tl.arange(0, PARTIAL_BLOCK)
        values = tl.load(partials_ptr + i, mask=i < programs, other=0.0, cache_modifier=".cg")
        classification += tl.sum(tl.where(i < n_cls, values, 0.0), 0)
        regression += tl.sum(tl.where(i >= n_cls, values, 0.0), 0)
    return regression, classification


@triton.jit
def count_kernel(
    denominators_ptr,  # (2,) float64: M, L
    partials_ptr,  # (programs,) float64
    ticket_ptr,
    t_ptr,  # (N, S)
    position_weight_ptr,  # (N, S)
    class_weight_ptr,
    y_ptr,  # (N, D)
    element_weight_ptr,  # (N, D)
    n_cls,  # programs that count positions; the others count elements
    chunk,  # positions or elements a program
    positions,
    elements,
    S,
    C,
    D,
    t_stride_n,
    t_stride_s,
    position_weight_stride_n,
    position_weight_stride_s,
    y_stride_n,
    y_stride_d,
    element_weight_stride_n,
    element_weight_stride_d,
    ignore_index,
    SOFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_POSITION_WEIGHT: tl.constexpr,
    HAS_ELEMENT_WEIGHT: tl.constexpr,
    IGNORE_NAN: tl.constexpr,
    COUNT_R: tl.constexpr,
    COUNT_Z: tl.constexpr,
    FLAT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Both denominators of "mean", or the one that is wanted."""
    pid = tl.program_id(0)
    count = tl.zeros([], tl.float64)
    if COUNT_Z:
        if pid < n_cls:
            first = pid.to(tl.int64) * chunk
            last = narrowed(tl.minimum(first + chunk, positions), positions, S)
            count = count_labels(
                (t_ptr, t_stride_n, 0, t_stride_s),
                (position_weight_ptr, position_weight_stride_n, 0, position_weight_stride_s),
                class_weight_ptr, first, last, S, C, ignore_index,
                SOFT, HAS_WEIGHT, HAS_POSITION_WEIGHT, COUNT_BLOCK, ACC,
            )  # fmt: skip
    if COUNT_R:
        if pid >= n_cls:
            first = (pid - n_cls).to(tl.int64) * chunk
            last = narrowed(tl.minimum(first + chunk, elements), elements, D)
            count = count_elements(
                (y_ptr, y_stride_n, y_stride_d),
                (element_weight_ptr, element_weight_stride_n, element_weight_stride_d),
                first, last, D, HAS_ELEMENT_WEIGHT, IGNORE_NAN, FLAT, COUNT_BLOCK, ACC,
            )  # fmt: skip
    tl.store(partials_ptr + pid, count)
    if last_to_arrive(ticket_ptr):
        M, L = sum_partials(partials_ptr, n_cls, tl.num_programs(0))
        tl.store(denominators_ptr, M)
        tl.store(denominators_ptr + 1, L)
