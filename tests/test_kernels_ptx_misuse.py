"""The emulator of PTX by hand: what may not be done to memory, and to registers."""

from __future__ import annotations

import random

import pytest
import torch
from _ptx_by_hand import launch
from _ptx_machine import run, together
from _ptx_memory import Misuse
from torch import Tensor


def check(wrong: str, body: str, *tensors: Tensor, thread: int | None = None, **how) -> None:
    """A launch is wrong as told, where the first thread is, or is right."""
    made = launch(body, *tensors, **how)
    if not wrong:
        run(made)
        return
    with pytest.raises(Misuse, match=wrong) as caught:
        run(made)
    assert str(caught.value).startswith("hand, program ")
    assert thread is None or f"thread {thread}:" in str(caught.value)


def test_an_access_stays_within_its_tensor() -> None:
    body = "mad.wide.u32 %rd2, %r0, 4, %rd0; st.global.b32 [%rd2], %r0;"
    check("", body, torch.zeros(32))
    check("out of bounds", body, torch.zeros(31), thread=31)
    check("out of bounds", body, torch.zeros(40)[:31], thread=31)
    check("out of bounds", body, torch.zeros(40)[8:39], thread=31)
    check("not of an argument", body, torch.zeros(8, 5)[:, :4], thread=4)
    check("no memory", body)


def test_a_vector_is_aligned_to_its_width() -> None:
    body = "mad.wide.u32 %rd2, %r0, 16, %rd0; ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd2];"
    check("", body, torch.zeros(140)[4:])
    check("misaligned: 16 bytes", body, torch.zeros(140)[2:], thread=0)
    check("misaligned: 8 bytes", "ld.global.b64 %rd2, [%rd0+4];", torch.zeros(4))


def test_shared_memory_is_as_large_as_it_is() -> None:
    body = "shl.b32 %r1, %r0, 2; mov.b32 %r2, global_smem; add.s32 %r1, %r1, %r2;"
    body += "st.shared.b32 [%r1], %r0;"
    check("", body, shared=128)
    check("out of bounds", body, shared=124, thread=31)


@pytest.mark.parametrize(
    "way",
    [
        "mov.b32 %r2, %r1;",
        "add.s32 %r2, %r1, %r0;",
        "xor.b32 %r3, %r0, 4; shfl.sync.idx.b32 %r2, %r1, %r3, 31, -1;",
        "mov.b64 %rd3, {%r1, %r1}; mov.b64 {_, %r2}, %rd3;",
        "mov.b32 %r2, 0; @%p1 bra $on; mov.b32 %r2, %r1;\n$on: mov.b32 %r3, 0;",
    ],
)
def test_nothing_comes_of_what_nobody_wrote(way: str) -> None:
    """It may be moved and computed with, as it is by threads that take no part."""
    body = "setp.lt.u32 %p1, %r0, 4; @%p1 mov.b32 %r1, 1;" + way
    first = 0 if "shfl" in way else 4
    check("", body)
    store = "mul.wide.u32 %rd2, %r0, 4; add.s64 %rd2, %rd2, %rd0; st.global.b32 [%rd2], %r2;"
    check("reads %r2, which was not written", body + store, torch.zeros(32), thread=first)
    jump = "setp.eq.b32 %p2, %r2, 0; @%p2 bra $end;\n$end: mov.b32 %r3, 0;"
    check("reads %p2, which was not written", body + jump, thread=first)
    load = "mul.wide.u32 %rd2, %r2, 0; add.s64 %rd2, %rd2, %rd0; ld.global.b32 %r3, [%rd2];"
    check("reads %rd2, which was not written", body + load, torch.zeros(32), thread=first)
    check("", body + "mov.b32 %r2, 0;" + store, torch.zeros(32))


def test_a_lane_is_told_by_what_was_written() -> None:
    body = "setp.eq.u32 %p1, %r0, 3; @!%p1 mov.b32 %r1, 1; shfl.sync.idx.b32 %r2, %r0, %r1, 31, -1;"
    check("reads %r1, which was not written", body, thread=3)


def test_nobody_reads_what_nobody_wrote() -> None:
    check("reads what nobody wrote", "ld.shared.b32 %r1, [global_smem+8];")
    x = torch.zeros(4)
    load, store = "ld.global.b32 %r1, [%rd0+8];", "st.global.b32 [%rd0+8], %r1;"
    check("reads what nobody wrote", load, x, empty=(x,))
    check("", "mov.b32 %r1, 0;" + store + load, x, empty=(x,))


SWAP = """shl.b32 %r1, %r0, 2; mov.b32 %r2, global_smem; add.s32 %r1, %r1, %r2;
    st.shared.b32 [%r1], %r0; bar.sync 0; xor.b32 %r3, %r1, 128; ld.shared.b32 %r4, [%r3];
    bar.sync 0; st.shared.b32 [%r1], %r4;"""


def test_two_warps_need_a_barrier_between_them() -> None:
    check("", SWAP, threads=64)
    check("reads what another thread writes", SWAP.replace("bar.sync 0;", "", 1), threads=64)
    last = "".join(SWAP.rsplit("bar.sync 0;", 1))
    check("writes what another thread reads", last, threads=64)
    same = "mov.b32 %r1, 3; st.shared.b32 [global_smem], %r1;"
    check("", same, threads=64)  # as threads that hold one element do
    check("writes what another thread writes", same.replace("%r1;", "%r0;"), threads=64)


def test_a_barrier_is_for_all() -> None:
    body = "setp.lt.u32 %p1, %r0, 40; @!%p1 bra $on; bar.sync 0;\n$on: mov.b32 %r1, 0;"
    check("a barrier that not every thread reaches", body, threads=64, thread=40)


def test_programs_do_not_share_what_they_have_not_published() -> None:
    """The last of two, which a ticket tells, reads what both have written."""
    store = "mov.u32 %r1, %ctaid.x; st.global.b32 [%rd0], %r1;"
    check("writes what another thread writes", store, torch.zeros(1), programs=2)
    ticket = """mov.u32 %r1, %ctaid.x; mad.wide.u32 %rd2, %r1, 4, %rd0; st.global.b32 [%rd2], %r1;
        mov.b32 %r2, 1; mov.b32 %r3, 0; setp.eq.b32 %p2, %r0, 0;
        @%p2 atom.global.gpu.acq_rel.add.u32 %r3, [%rd1], %r2; setp.eq.b32 %p1, %r3, 1;
        @%p1 ld.global.b32 %r4, [%rd0]; @%p1 ld.global.b32 %r4, [%rd0+4];"""
    relaxed = ticket.replace("acq_rel", "relaxed")
    for body, wrong in ((ticket, ""), (relaxed, "reads what another thread writes")):
        check(wrong, body, torch.zeros(2), torch.zeros(1, dtype=torch.int32), programs=2)


def test_programs_of_two_launches_take_turns() -> None:
    """Each adds its number to its launch's own sum; at most two of a launch are under way."""
    body = """mov.u32 %r1, %ctaid.x; setp.eq.b32 %p1, %r0, 0; bar.sync 0;
        @%p1 atom.global.gpu.acq_rel.add.u32 %r2, [%rd0], %r1;"""
    sums = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    together([[launch(body, x, programs=5)] * 2 for x in sums], random.Random(0), most=2)
    assert [x.item() for x in sums] == [20, 20]
