"""Every kernel variant compiles for Hopper and for an MI300, without either: no register spill.

The representative set is pairwise over the main options, plus every option at once; the sweep
(`slow`) is pairwise over all of them, and compiles every combination of options, and every tile of
the launch table at its plainest and its fullest.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
import triton.language as tl
from _calls import MAIN, SPACE, every_option, pairs, pairwise, samples
from _variants import known, names, option_pairs

from fused_loss.bench.ahead import GFX942, SM_90, Code, Compiler, variant
from fused_loss.bench.calls import DTYPES, Call, launches_go_to
from fused_loss.bench.compiled_families import FULLEST
from fused_loss.kernels import triton_launch, triton_table
from fused_loss.kernels.triton_grid import Launch
from fused_loss.kernels.triton_math import PEELED
from fused_loss.kernels.triton_pieces import ENDS
from fused_loss.kernels.triton_scale import scale_kernel

FULL = FULLEST._replace(samples="few")
FEW_AND_COUNTED = Call(classes=32000, r_layout="wide", element_weight="full")  # three launches
PARTS = 16
TILED = ("reduce_kernel", "per_sample_kernel", "slices_kernel")


def regimes() -> list[Call]:
    """The launch table at its plainest and with everything on, in rows that take vectors."""
    plain = [("f32", 16), ("bf16", 128), ("f32", 1024), ("bf16", 16384), ("bf16", 262144)]
    full = [("bf16", 16), ("f32", 1024), ("f64", 2048), ("f32", 8192), ("bf16", 32000)]
    smoothed = FULL._replace(targets="int64")
    split = Call(z_dtype="bf16", r_dtype="bf16", classes=262144)
    wide = Call(reduction="none", element_weight="sample", missing=True, grads="r", samples="many")
    return [
        *[Call(z_dtype=z, r_dtype=z, classes=classes) for z, classes in plain],
        *[FULL._replace(z_dtype=z, r_dtype=z, classes=classes) for z, classes in full],
        *[smoothed._replace(z_dtype=z, r_dtype=z, classes=classes) for z, classes in full[1::2]],
        *[call._replace(classes=32000) for call in (Call(), FULL, smoothed)],
        *[split, split._replace(samples="many"), split._replace(grads=""), FEW_AND_COUNTED],
        Call(r_dtype="f16", classes=3, r_layout="sliced"),
        wide._replace(r_dtype="f64", z_dtype="f64", r_layout="strided"),
        FULL._replace(reduction="none", classes=3, z_dtype="bf16", r_layout="strided"),
    ]


def every_tile() -> list[Call]:
    """The launch table from end to end, at its plainest and its fullest."""
    lengths = sorted({c for k in range(16) for c in (1 << k, (1 << k) - 1)} - {0})
    heads = Call(), FULL, FULL._replace(targets="int64")
    return [
        head._replace(classes=classes, layout=layout, z_dtype=dtype, r_dtype=dtype)
        for head, classes, layout, dtype in itertools.product(
            heads, lengths, ("rows", "spatial"), ("f32", "bf16", "f64")
        )
    ]


def name(call: Call) -> str:
    """What differs from the default, for the test's id."""
    default = Call()
    changed = [str(value) for value, usual in zip(call, default, strict=True) if value != usual]
    return "-".join(changed) or "default"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    worker = Compiler(tmp_path_factory.mktemp("aot"))
    yield worker
    worker.close()


def check(compiler: Compiler, call: Call, listing: bool) -> None:
    """That it compiles for Hopper as it should; `listing`: the machine code is read too."""
    codes = compiler.compile(call, SM_90, listing=listing)
    assert codes
    for code in codes:
        assert code.spilled == 0, f"{code.spilled} bytes a thread in {code.kernel} {code.variant}"
        assert code.shared <= 99 << 10  # of a program on sm_86 and sm_89, which have least
        if call.vectors and code.kernel in TILED:
            check_widths(call, code)
            wide = [a.number for a in code.accesses if a.kind != "st" and a.bits == 128]
            assert not listing or code.wide_loads >= sum(wide)
        flat = dict(code.variant).get("FLAT") or call.r_layout == "sliced"
        if flat and code.kernel == "reduce_kernel":
            check_regression_widths(call, code)


def check_widths(call: Call, code: Code) -> None:
    """Logits, probabilities and gradient move 128 bits an instruction, and all of them do.

    A thread reads its share of a tile once, or twice where the gradient takes a second pass, and
    not at all for the other head's gradient. A row that is split is read once for its sums, and
    once for its gradient. One that is read ahead is so before the loop, and in it. A gradient has
    two stores, of which a row takes one. Only the target's own logit is read alone, one a row.
    """
    reading = {"GRAD_Z": False, "DEFERRED": False, "ONE_BLOCK": False, "ROWS": 1, "SPLIT": 0}
    reading["STAGES"] = 1
    options = reading | dict(code.variant)
    tile = options["ROWS"] * options["BLOCK_C"] // (32 * options["warps"])  # elements a thread
    passes = 2 if options["GRAD_Z"] and not options["ONE_BLOCK"] else 1
    if options["SPLIT"]:
        passes = int(options["GRAD_Z"])
    elif options["DEFERRED"] and not options["GRAD_Z"]:
        passes = 0
    z_bytes = DTYPES[call.z_dtype].itemsize
    spread = code.kernel == "slices_kernel" and options["SMOOTH"] and options["SOFT"]
    again = 2 if spread and options["HAS_MASK"] else 1  # see `triton_split`
    passes *= options["STAGES"]
    shares = {"z_ptr": again * passes * tile * z_bytes}
    if options["SOFT"]:
        shares["t_ptr"] = passes * tile * (4 if call.targets == "soft32" else z_bytes)
    if options["GRAD_Z"]:
        shares["z_grad_ptr"] = 2 * tile * z_bytes
    for pointer, share in shares.items():
        counts = widths(code, pointer)
        assert counts.pop(128, 0) == share // 16, pointer
        alone = options["ROWS"] * options["STAGES"]
        alone *= pointer == "z_ptr" and not options["SOFT"]
        assert sum(counts.values()) <= alone
        ahead = any((a.pointer, a.kind) == (pointer, "cp") for a in code.accesses)
        assert ahead == (options["STAGES"] == 2 and pointer != "z_grad_ptr")


def check_regression_widths(call: Call, code: Code) -> None:
    """Whole tiles of outputs, targets and gradient move 128 bits an access, for any N·D.

    Rows apart from each other too, if D and their distance are multiples of 16.
    """
    options = dict(code.variant)
    share = options["BLOCK_M"] // (32 * options["warps"]) * DTYPES[call.r_dtype].itemsize
    for pointer in ("r_ptr", "y_ptr", *["r_grad_ptr"][: options["GRAD_R"]]):
        assert widths(code, pointer)[128] >= share // 16, pointer


def widths(code: Code, pointer: str) -> Counter[int]:
    """How many accesses to the memory of a pointer there are of each width, in bits."""
    counts: Counter[int] = Counter()
    for access in code.accesses:
        if access.pointer == pointer:
            counts[access.bits] += access.number
    return counts


def in_the_sweep(calls: Iterable[Call]) -> list[Any]:
    return [pytest.param(call, marks=pytest.mark.slow) for call in calls]


@pytest.mark.parametrize(
    "call", [*pairwise(MAIN), *regimes(), *in_the_sweep(pairwise(SPACE))], ids=name
)
def test_compiles_for_hopper(compiler: Compiler, call: Call) -> None:
    check(compiler, call, listing=call.vectors and call not in regimes())


@pytest.mark.parametrize(
    ("reduction", "dtype", "classes", "bits"),
    [
        ("mean", "bf16", 1000, 128),
        ("mean", "bf16", 32008, 128),
        ("mean", "bf16", 1004, 64),
        ("mean", "bf16", 1001, 16),
        ("mean", "f32", 1004, 128),
        ("mean", "f32", 10, 64),
        ("none", "bf16", 1000, 128),
        ("none", "f32", 1002, 64),
    ],
)
def test_a_row_moves_as_many_bits_as_its_length_allows(
    compiler: Compiler, reduction: str, dtype: str, classes: int, bits: int
) -> None:
    call = Call(reduction=reduction, z_dtype=dtype, r_dtype=dtype, classes=classes)
    for code in compiler.compile(call, SM_90, listing=False):
        check_bits(code, "z_ptr", "ld", bits)
        check_bits(code, "z_grad_ptr", "st", bits)


@pytest.mark.parametrize(
    "call",
    [
        Call(z_dtype="bf16", r_dtype="bf16", classes=50257, samples="many"),
        FULL._replace(z_dtype="bf16", r_dtype="bf16", classes=50257, samples="many"),
        *in_the_sweep(
            [
                Call(z_dtype="bf16", classes=50257),  # in slices
                Call(classes=50257, targets="soft", samples="many"),
                Call(reduction="none", z_dtype="f16", classes=30522),
            ]
        ),
    ],
    ids=name,
)
def test_the_body_of_a_long_row_moves_128_bits_whatever_its_length(
    compiler: Compiler, call: Call
) -> None:
    """Each time that the row is read or written; the rest is its two ends, and the label."""
    for code in compiler.compile(call, SM_90, listing=False):
        options = {"GRAD_Z": False, "SPLIT": 0, "SOFT": False} | dict(code.variant)
        if code.kernel not in TILED:
            continue
        assert (options["UNIT"], code.spilled) == (PEELED.value, 0)
        share = options["BLOCK_C"] // (32 * options["warps"]) * DTYPES[call.z_dtype].itemsize // 16
        reads = (not options["SPLIT"]) + options["GRAD_Z"]
        expected = {"z_ptr": reads * share, "z_grad_ptr": 2 * share * options["GRAD_Z"]}
        if options["SOFT"]:
            expected["t_ptr"] = reads * share
        for pointer, wide in expected.items():
            counts = widths(code, pointer)
            assert counts.pop(128, 0) == wide, pointer
            assert sum(counts.values()) <= reads * ENDS.value, pointer


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 16), ("f32", 32)])
def test_rows_from_an_odd_address_are_read_an_element_at_a_time(
    compiler: Compiler, dtype: str, bits: int
) -> None:
    call = Call(z_dtype=dtype, layout="shifted")
    for code in compiler.compile(call, SM_90, listing=False):
        check_bits(code, "z_ptr", "ld", bits)
        check_bits(code, "z_grad_ptr", "st", 128)


def check_bits(code: Code, pointer: str, kind: str, bits: int) -> None:
    """That most accesses move so many bits: of loads, a target's own logit is read alone."""
    options = dict(code.variant)
    if "ROWS" not in options or not (kind == "ld" or options["GRAD_Z"]):
        return
    counts = Counter(
        {a.bits: a.number for a in code.accesses if (a.pointer, a.kind) == (pointer, kind)}
    )
    assert counts.pop(bits, 0)
    assert sum(counts.values()) <= (options["ROWS"] if kind == "ld" else 0)


@pytest.mark.parametrize(
    "call",
    [
        Call(classes=10),
        FULL,
        FEW_AND_COUNTED._replace(reduction="none"),
        *in_the_sweep(pairwise(MAIN)),
    ],
    ids=name,
)
def test_compiles_for_mi300(compiler: Compiler, call: Call) -> None:
    codes = compiler.compile(call, GFX942)
    assert codes
    assert not any(code.spilled for code in codes)
    assert all(code.shared <= 65536 for code in codes)  # as it has a program


def trials() -> list[Any]:
    """Calls whose tiles FUSED_LOSS_AUTOTUNE tries: rows in many blocks, and (slow) the others."""
    plain = [("f32", 16), ("bf16", 128), ("f32", 1024), ("bf16", 4096), ("f64", 1000)]
    full = [("bf16", 16), ("f32", 1024), ("f64", 2048), ("f32", 8192), ("bf16", 32000)]
    others = [
        *[Call(z_dtype=z, r_dtype=z, classes=classes) for z, classes in plain],
        *[FULL._replace(z_dtype=z, r_dtype=z, classes=c, samples="many") for z, c in full],
        Call(reduction="none"),
        Call(layout="spatial"),
        Call(layout="transposed", classes=3),
    ]
    return [
        Call(z_dtype="bf16", classes=262144, grads="z", samples="many"),
        *in_the_sweep(others),
    ]


@pytest.mark.parametrize("call", trials(), ids=name)
def test_every_candidate_of_a_trial_compiles(compiler: Compiler, call: Call) -> None:
    """Without a spill; each has a tile of its own."""
    seen: list[Any] = []
    for candidate in itertools.count():
        codes = compiler.compile(call, SM_90, candidate, listing=False)
        assert not any(code.spilled for code in codes)
        variants = [code.variant for code in codes]
        if variants in seen:  # one more than there are
            break
        seen.append(variants)
    assert len(seen) > 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("calls", [every_option, every_tile])
def test_sweep_for_hopper(compiler: Compiler, calls, part: int) -> None:
    failures = []
    for call in calls()[part::PARTS]:
        try:
            check(compiler, call, listing=call.vectors)
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{name(call)}: {error}")
    assert not failures, "\n".join(failures)


def test_every_pair_of_options_is_compiled() -> None:
    compiled = set().union(*map(pairs, pairwise(SPACE)))
    assert set().union(*map(pairs, samples(SPACE, 4000, seed=1))) <= compiled


def test_the_known_variants_are_those_that_calls_bring_about() -> None:
    seen: dict[str, set[frozenset]] = {"reduce_kernel": set(), "per_sample_kernel": set()}
    strangers = []

    def launch(made, arguments):
        key = variant(made.kernel, made.warps, arguments)
        if not known(key):
            strangers.append(key)
        if key[0] in seen:
            chosen = [pair for pair in key[1] if pair[0] in names(key[0])]
            seen[key[0]] |= {frozenset(pair) for pair in itertools.combinations(chosen, 2)}

    with launches_go_to(launch):
        for call in (*pairwise(SPACE), *every_option(), FEW_AND_COUNTED):
            call.run()
    assert not strangers
    for kernel, found in seen.items():
        wanted = option_pairs(kernel)
        assert found == wanted, found ^ wanted


def test_a_launch_of_an_unknown_variant_fails_its_test() -> None:
    arguments = {"IN_PLACE": True, "ACC": tl.float32, "BLOCK": triton_table.SCALE_BLOCK + 1}
    made = Launch(scale_kernel, 1, torch.device("cpu"), 4, **arguments)
    with pytest.raises(pytest.fail.Exception, match="scale_kernel"):
        triton_launch.launch(made, made.arguments)
