"""The emulator of PTX by hand: what instructions compute, and threads that meet."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from _ptx_by_hand import launch
from _ptx_machine import run
from _ptx_memory import Misuse
from _ptx_ops import KINDS, UnknownOpcode, find
from torch import Tensor

INF, NAN, ONE = 0x7F800000, 0x7FC00000, 0x3F800000  # float32
KILO = ONE + (1 << 11)  # 1 + 2^-12, whose square is 1 + 2^-11 + 2^-24
DOUBLE = 0x3FF0000000000000  # 1.0
A, B = DOUBLE + (1 << 26), DOUBLE + (1 << 25)  # 1 + 2^-26, 1 + 2^-27


# --- values ---------------------------------------------------------------------------------------

VALUES = [  # opcode, operands, result; bits throughout
    ("add.f32", (1, 2), 3),  # subnormals
    ("add.ftz.f32", (1, 0x80000002), 0),
    ("add.s32", (0x7FFFFFFF, 1), 0x80000000),
    ("fma.rn.f32", (KILO, KILO, 0xBF801000), 0x33800000),  # what two roundings lose: 2^-24
    ("fma.rn.f32", (KILO, KILO, 0x17800000), 0x3F801001),  # a tie, and 2^-80 beside it
    ("fma.rn.f32", (KILO, KILO, 0x97800000), 0x3F801000),
    ("fma.rn.f64", (B, B, (1 << 63) + A), 0x3C90000000000000),  # 2^-54
    ("fma.rn.f64", (A, B, 0x3370000000000000), DOUBLE + (1 << 26) + (1 << 25) + 1),  # a tie again
    ("fma.rn.f64", (A, B, 0xB370000000000000), DOUBLE + (1 << 26) + (1 << 25)),
    ("fma.rn.f64", (1 << 52, DOUBLE - (1 << 52), 1), (1 << 51) + 1),  # subnormal
    ("div.rn.f32", (ONE, 0x40400000), 0x3EAAAAAB),
    ("max.f32", (NAN, ONE), ONE),
    ("max.f32", (0x80000000, 0), 0),
    ("min.f32", (0, 0x80000000), 0x80000000),
    ("min.f32", (ONE, NAN), ONE),
    ("neg.f32", (0,), 0x80000000),
    ("ex2.approx.ftz.f32", (0xC2FC0000,), 0x00800000),  # 2^-126
    ("ex2.approx.ftz.f32", (0xC2FE0000,), 0),
    ("ex2.approx.f32", (0xC2FE0000,), 0x00400000),  # 2^-127
    ("ex2.approx.ftz.f32", (0xFF800000,), 0),
    ("rcp.approx.ftz.f32", (0x40400000,), 0x3EAAAAAB),  # 1/3
    ("rcp.approx.ftz.f32", (0x00400000,), 0x7F800000),  # 1 / 2^-127, which is flushed
    ("rcp.approx.ftz.f64", (0x40080000FFFFFFFF,), 0x3FD5555500000000),
    ("selp.b32", (5, 7, 1), 5),
    ("selp.f32", (5, 7, 0), 7),
    ("setp.neu.f32", (NAN, NAN), 1),
    ("setp.ne.f32", (NAN, ONE), 0),
    ("setp.num.f32", (ONE, NAN), 0),
    ("setp.lt.s32", (0xFFFFFFFF, 0), 1),
    ("setp.lt.u32", (0xFFFFFFFF, 0), 0),
    ("shl.b32", (1, 31), 0x80000000),
    ("shl.b32", (1, 32), 0),
    ("shr.u32", (0x80000000, 33), 0),
    ("shr.s32", (0x80000000, 40), 0xFFFFFFFF),
    ("shr.s64", (0x8000000000000000, 63), 0xFFFFFFFFFFFFFFFF),
    ("mul.wide.s32", (0xFFFFFFFF, 2), 0xFFFFFFFFFFFFFFFE),
    ("mul.wide.u32", (0xFFFFFFFF, 2), 0x1FFFFFFFE),
    ("mad.wide.s32", (0xFFFFFFFF, 8, 8), 0),
    ("mul.lo.s32", (0x10001, 0x10001), 0x20001),
    ("div.s32", (0xFFFFFFF9, 2), 0xFFFFFFFD),  # -7 / 2
    ("rem.s32", (0xFFFFFFF9, 2), 0xFFFFFFFF),
    ("div.u32", (0xFFFFFFF9, 2), 0x7FFFFFFC),
    ("bfe.u32", (0xABCD1234, 8, 8), 0x12),
    ("bfe.s32", (0xABCD1234, 28, 4), 0xFFFFFFFA),
    ("bfe.s32", (0xABCD1234, 3, 0), 0),
    ("prmt.b32", (0x44332211, 0x88776655, 0x7150), 0x88226611),
    ("prmt.b32", (0x44332211, 0x88776655, 0x000F), 0x111111FF),
    ("cvt.rn.bf16.f32", (0x3F808000,), 0x3F80),  # ties, to even
    ("cvt.rn.bf16.f32", (0x3F818000,), 0x3F82),
    ("cvt.rn.bf16.f32", (0x7F7FFFFF,), 0x7F80),
    ("cvt.rn.bf16.f32", (0x7F800001,), 0x7FFF),
    ("cvt.rn.bf16x2.f32", (0x40000000, ONE), 0x40003F80),  # the first is the upper
    ("cvt.rn.f16.f32", (0x3F801000,), 0x3C00),
    ("cvt.rn.f16.f32", (0x3F803000,), 0x3C02),
    ("cvt.rn.f16.f32", (0x477FF000,), 0x7C00),  # 65520
    ("cvt.rn.f16.f32", (0x33000000,), 0),  # 2^-25
    ("cvt.rn.f16.f32", (0x33C00000,), 2),  # 3 · 2^-25
    ("cvt.rn.f32.f64", (0x3FF0000010000000,), ONE),
    ("cvt.rn.f32.s32", (0x01000001,), 0x4B800000),
    ("cvt.rzi.s32.f32", (0xC0200000,), 0xFFFFFFFE),  # -2.5
    ("cvt.rni.s32.f32", (0x40200000,), 2),
    ("cvt.rzi.u32.f32", (NAN,), 0),
    ("cvt.rn.sat.f32.f64", (0x4000000000000000,), ONE),
    ("cvt.f32.bf16", (0x3F80,), ONE),
    ("cvt.s64.s32", (0xFFFFFFFF,), 0xFFFFFFFFFFFFFFFF),
    ("cvt.u64.u32", (0xFFFFFFFF,), 0xFFFFFFFF),
    ("not.pred", (1,), 0),
]  # fmt: skip


@pytest.mark.parametrize(("opcode", "operands", "expected"), VALUES)
def test_a_value(opcode: str, operands: tuple[int, ...], expected: int) -> None:
    function, out, takes = find(opcode)
    arrays = []
    for bits, kind in zip(operands, takes, strict=True):
        dtype = np.dtype(KINDS[kind])
        arrays.append(np.array([bits] * 2, f"u{dtype.itemsize}").view(dtype))
    with np.errstate(all="ignore"):
        result = function(*arrays)
    raw = np.asarray(result, KINDS[out]).view(f"u{np.dtype(KINDS[out]).itemsize}")
    assert [hex(bits) for bits in raw] == [hex(expected)] * 2


def test_pairs_are_compared_apart() -> None:
    low, high = find("setp.num.bf16x2").function(*[np.array([0x7FC03F80, 0x3F807FC0], "u4")] * 2)
    assert (low.tolist(), high.tolist()) == ([True, False], [False, True])


@pytest.mark.parametrize(
    "opcode", ["frobnicate.b32", "add.rz.f32", "fma.f32", "setp.eq.and.f32", "cvt.f32.f64", "cvt"]
)
def test_an_unknown_opcode_is_named(opcode: str) -> None:
    with pytest.raises(UnknownOpcode, match=re.escape(opcode)):
        find(opcode)
    with pytest.raises(UnknownOpcode, match=re.escape(opcode)):
        launch(f"{opcode} %r1, %r0, %r0;")


@pytest.mark.parametrize(
    "statement",
    [
        "bar.sync 1;",
        "bar.red.popc.u32 %r1, 0, %p1;",
        "ld.volatile.global.b32 %r1, [%rd0];",
        "st.global.v8.b32 [%rd0], {%r0};",
        "shfl.sync.up.b32 %r1, %r0, 1, 0, -1;",
        "atom.global.gpu.acq_rel.max.u32 %r1, [%rd0], %r0;",
        "mov.u32 %r1, %clock;",
        "cp.async.bulk.wait_group 0;",
    ],
)
def test_what_is_not_executed_is_refused(statement: str) -> None:
    with pytest.raises(UnknownOpcode, match=re.escape(statement.split()[0].rstrip(";"))):
        launch(statement)


# --- threads --------------------------------------------------------------------------------------

OWN = "mad.wide.u32 %rd2, %r0, 4, %rd1;"  # each thread's element of the second tensor


def kept(body: str, source: Tensor | None = None, threads: int = 32) -> list[int]:
    """%r1 of each thread at the end."""
    out = torch.zeros(threads, dtype=torch.int32)
    source = torch.arange(4, dtype=torch.int32) if source is None else source
    run(launch(f"{body}\n{OWN} st.global.b32 [%rd2], %r1;", source, out, threads=threads))
    return out.tolist()


def test_threads_exchange_values() -> None:
    bfly, idx = (f"shfl.sync.{mode}.b32 %r1, %r0, 5, 31, -1;" for mode in ("bfly", "idx"))
    assert kept(bfly, threads=64) == [i ^ 5 for i in range(64)]
    assert kept(idx, threads=64) == 32 * [5] + 32 * [37]
    with pytest.raises(Misuse, match="thread 5: its warp acts as one, and it is not there"):
        kept(f"setp.ne.b32 %p1, %r0, 5; mov.b32 %r1, 0; @%p1 {idx}")


def test_a_warp_waits_for_a_slow_path_that_stands_behind_the_place_to_meet() -> None:
    ways = "setp.eq.b32 %p1, %r0, 5; mov.b32 %r2, %r0; @%p1 bra $slow;"
    ways += "\n$meet: shfl.sync.idx.b32 %r1, %r2, 5, 31, -1; bra $end;"
    assert kept(f"{ways}\n$slow: mov.b32 %r2, 77; bra $meet;\n$end:") == 32 * [77]


def test_a_predicate_keeps_a_vector_load_from_threads() -> None:
    body = """setp.lt.u32 %p1, %r0, 2; mov.b32 %r1, 7; mov.b32 %r2, 7; mov.b32 %r3, 7;
        mov.b32 %r4, 7; @%p1 ld.global.v4.b32 {%r4, %r3, %r2, %r1}, [%rd0 + 0];"""
    assert kept(body) == [3, 3] + 30 * [7]
    assert kept(body.replace("@%p1", "@!%p1")) == [7, 7] + 30 * [3]


def test_threads_part_and_meet() -> None:
    body = """mov.b32 %r1, 0; setp.lt.u32 %p1, %r0, 3;
        @%p1 bra $less; add.s32 %r1, %r1, 100; bra.uni $both;
    $less: add.s32 %r1, %r1, 10; setp.eq.b32 %p2, %r1, 20; @!%p2 bra $less;
    $both: add.s32 %r1, %r1, 1;"""
    assert kept(body.replace("$less:", "\n$less:").replace("$both:", "\n$both:")) == (
        [21] * 3 + [101] * 29
    )


def test_atomics_count_each_thread() -> None:
    source = torch.zeros(1, dtype=torch.int32)
    body = "mov.b32 %r2, 2; atom.global.gpu.acq_rel.add.u32 %r1, [%rd0], %r2;"
    assert kept(body, source) == list(range(0, 64, 2))
    assert source.item() == 64


def test_bits_are_packed_and_unpacked() -> None:
    body = "mov.b32 {%rs1, %rs2}, %r0; mov.b32 %r2, {%rs2, %rs1}; mov.b64 %rd3, {%r0, %r2};"
    assert kept(body + "mov.b64 {_, %r1}, %rd3;") == [i << 16 for i in range(32)]


COPY = """mad.wide.u32 %rd3, %r0, 16, %rd0; shl.b32 %r5, %r0, 4; mov.b32 %r6, global_smem;
    add.s32 %r6, %r6, %r5; setp.lt.u32 %p1, %r0, 16; selp.b32 %r7, 16, 0, %p1;
    cp.async.cg.shared.global [%r6 + 0], [%rd3 + 0], 0x10, %r7; cp.async.commit_group;
    xor.b32 %r5, %r5, 256; mov.b32 %r6, global_smem; add.s32 %r6, %r6, %r5;"""


@pytest.mark.parametrize(
    ("then", "wrong"),
    [
        ("cp.async.wait_group 0; bar.sync 0;", ""),
        ("bar.sync 0;", "cp.async is under way"),
        ("cp.async.wait_group 1; bar.sync 0;", "cp.async is under way"),
        ("cp.async.wait_group 0;", "reads what another thread writes"),
        ("st.global.b32 [%rd3], %r0; cp.async.wait_group 0; bar.sync 0;", "changed meanwhile"),
    ],
)
def test_what_is_copied_ahead_is_waited_for(then: str, wrong: str) -> None:
    """Each thread reads what the one half the warp away has copied, or the zeros in its place."""
    source = torch.arange(128, dtype=torch.int32) + 1
    body = f"{COPY}{then} ld.shared.b32 %r1, [%r6+4];"
    if wrong:
        with pytest.raises(Misuse, match=wrong):
            kept(body, source)
    else:
        assert kept(body, source) == 16 * [0] + [4 * i + 2 for i in range(16)]
