"""A kernel written by hand, for the emulator of PTX."""

from __future__ import annotations

import numpy as np
from _ptx_machine import Launch
from _ptx_memory import Memory
from _ptx_parse import parse
from torch import Tensor

PTX = """
.visible .entry hand(
	.param .u64 .ptr .global .align 1 hand_param_0,
	.param .u64 .ptr .global .align 1 hand_param_1
)
.reqntid THREADS
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd0, [hand_param_0];
	ld.param.b64 	%rd1, [hand_param_1];
	mov.u32 	%r0, %tid.x;
BODY
	ret;
}
"""


def launch(
    body: str,
    *tensors: Tensor,
    threads: int = 32,
    programs: int = 1,
    shared: int = 1024,
    empty: tuple[Tensor, ...] = (),
) -> Launch:
    """%rd0 and %rd1 are the tensors' addresses, %r0 the thread; `empty` nobody has written."""
    text = PTX.replace("THREADS", str(threads)).replace("BODY", body)
    written = {
        x.untyped_storage().data_ptr(): np.zeros(x.untyped_storage().nbytes(), bool) for x in empty
    }
    memory = Memory(tensors, written)
    addresses = [memory.address(x) for x in (*tensors, None, None)][:2]
    return Launch(parse(text), addresses, programs, shared, memory)
