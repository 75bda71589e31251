"""What the Triton kernels compile to for an H100 or H200 (sm_90): compiled, not run.

Each family is a public call on tensors without memory; the launcher picks its kernels and tiles as
it would on a GPU of 132 multiprocessors, and Triton compiles them ahead of time. Registers, shared
memory and spills are the assembler's own; widths of loads and stores are those of its input, by
pointer; instructions are counted in the machine code. No GPU is needed, and no time is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fused_loss.bench.calls import DTYPES, Call
from fused_loss.bench.compiled_families import Family, families
from fused_loss.bench.compiled_table import markdown
from fused_loss.bench.environment import environment
from fused_loss.bench.written import add_out, write_table

if TYPE_CHECKING:
    from fused_loss.bench.ahead import Code

ABOUT = "what the Triton kernels compile to for sm_90: registers, spills, widths, instructions"
FILE, REPORT = "compiled.json", "compiled.md"
OF_LOGITS = ("reduce_kernel", "per_sample_kernel", "slices_kernel")
# Of a multiprocessor of sm_90, and how registers and shared memory are given out.
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 233472, 64, 32
REGISTER_UNIT, SHARED_RESERVED = 8, 1024


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `fused-loss bench compiled`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--families",
        metavar="WORDS",
        default="",
        help='only those whose name has these words, as "few rows" (default: all)',
    )
    add_out(parser, f"{FILE} and {REPORT}")


def run(args: argparse.Namespace) -> int:
    """Compile, print the table, and write it where that is asked for.

    Returns:
        0; 1 where a kernel spills for want of registers; 2 where no family has such a name.

    Raises:
        ModuleNotFoundError: Triton is not installed.
    """
    chosen = [family for family in families() if args.families in family.name]
    if not chosen:
        names = "\n  ".join(family.name for family in families())
        print(
            f"fused-loss bench compiled: no family has {args.families!r} in its name; there are\n"
            f"  {names}",
            file=sys.stderr,
        )
        return 2
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError("Triton compiles the kernels: pip install 'fused-loss[triton]'")
    words = f' --families "{args.families}"' if args.families else ""
    results = {
        "command": f"fused-loss bench compiled{words}",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(torch.device("cpu")),
        "target": "sm_90",
    }
    found = list(rows(chosen))
    text = markdown(results | {"rows": found})
    print(text)
    write_table(args.out, (FILE, REPORT), results, found, text)
    return int(any(row["spilled"] for row in found))


def rows(chosen: Sequence[Family]) -> Iterator[dict[str, Any]]:
    """A row a launch that reads logits, in their order; in JSON's types."""
    from fused_loss.bench.ahead import SM_90, Compiler  # loads Triton only in a process of its own

    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(Path(folder))
        try:
            for family in chosen:
                for code in compiler.compile(family.call, SM_90):
                    if code.kernel in OF_LOGITS:
                        yield _row(family, code)
        finally:
            compiler.close()


def _row(family: Family, code: Code) -> dict[str, Any]:
    options = dict(code.variant)
    tile = {
        "rows": options.get("ROWS", 1),
        "columns": options["BLOCK_C"],
        "warps": options["warps"],
    }
    return {
        "family": family.name,
        "kernel": code.kernel,
        "programs": code.programs,
        "tile": tile,
        "registers": code.registers,
        "shared": code.shared,
        "spilled": code.spilled,
        "unforced": code.unforced,
        "resident": resident(code.registers, code.shared, tile["warps"]),
        "logits_read_bits": _bits(code, "z_ptr"),
        "gradient_written_bits": _bits(code, "z_grad_ptr"),
        "outputs_read_bits": _bits(code, "r_ptr"),
        "instructions": code.work._asdict(),
        **per_row(code.work.row, code.work.blocks, family.call.classes, tile),
        "bytes_a_logit": bytes_a_logit(family.call, code),
        "instructions_an_element": code.work.elements * 32 * tile["warps"] / options["BLOCK_M"]
        if "BLOCK_M" in options
        else 0.0,
    }


def resident(registers: int, shared: int, warps: int) -> int:
    """How many programs fit a multiprocessor of sm_90 at once.

    Args:
        registers: A thread.
        shared: Bytes of shared memory a program.
        warps: Of a program.
    """
    given = -(-registers // REGISTER_UNIT) * REGISTER_UNIT
    return min(
        REGISTERS // (given * 32 * warps),
        SHARED // (shared + SHARED_RESERVED),
        WARPS // warps,
        PROGRAMS,
    )


def per_row(row: int, blocks: Sequence[int], classes: int, tile: dict[str, int]) -> dict[str, Any]:
    """Instructions that warps issue for a row of logits, and that threads execute for a logit.

    A row of several blocks takes each loop over them once a block.

    Args:
        row: Instructions of the loop over rows, without what is nested in it.
        blocks: Of each loop over the blocks of a row.
        classes: C.
        tile: Its rows, columns and warps.
    """
    trips = -(-classes // tile["columns"])
    issued = tile["warps"] * (row + trips * sum(blocks)) / tile["rows"]
    return {"warp_instructions_a_row": issued, "instructions_a_logit": 32 * issued / classes}


def bytes_a_logit(call: Call, code: Code) -> float:
    """What memory has to move for a logit and what belongs to it; a second read is from L2.

    Of a row that is split the first launch reads all that is read, and the second one writes.
    """
    size = DTYPES[call.z_dtype].itemsize
    targets = size if call.targets == "soft" else 8 / call.classes
    reads = size + targets + bool(call.class_mask)
    writes = size if "z" in call.grads else 0
    if code.kernel == "slices_kernel":
        return reads
    return writes if dict(code.variant).get("SPLIT") else reads + writes


def _bits(code: Code, pointer: str) -> dict[str, int]:
    """How many accesses the code has of each width, widest first."""
    found: Counter[int] = Counter()
    for access in code.accesses:
        if access.pointer == pointer:
            found[access.bits] += access.number
    return {str(bits): found[bits] for bits in sorted(found, reverse=True)}
