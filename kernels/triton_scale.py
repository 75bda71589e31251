"""The backward of a gradient that the forward pass has stored: times `grad_output`, in one launch.

`grad_output` is read on the device. Where it is 1 and the result may stay where it is, the kernel
leaves at once and moves no memory; otherwise it reads and writes each gradient once.
"""

import triton
import triton.language as tl

from fused_loss.kernels.triton_math import rounded, tiles_of


@triton.jit
def scale_one(
    from_ptr, to_ptr, elements, factor, first, step, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """to = from · factor, tiles first, first + step, ..."""
    for tile in range(first, tiles_of(elements, BLOCK), step):
        i = tl.full([], tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(from_ptr + i, mask=i < elements, other=0.0).to(ACC)
        tl.store(to_ptr + i, rounded(g * factor, to_ptr), mask=i < elements)


@triton.jit
def scale_kernel(
    grad_output_ptr,  # ()
    a_ptr,  # dense, `a_elements` long
    a_out_ptr,
    b_ptr,
    b_out_ptr,
    a_elements,
    b_elements,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """See the module's docstring."""
    factor = tl.load(grad_output_ptr).to(ACC)
    needed = (factor != 1.0) | tl.full([], not IN_PLACE, tl.int1)
    if needed:
        first = tl.program_id(0)
        step = tl.num_programs(0)
        scale_one(a_ptr, a_out_ptr, a_elements, factor, first, step, BLOCK, ACC)
        scale_one(b_ptr, b_out_ptr, b_elements, factor, first, step, BLOCK, ACC)
