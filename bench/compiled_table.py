"""What was compiled ahead of time, in Markdown: every figure in it is one of the results'."""

from __future__ import annotations

from typing import Any

from fused_loss.bench.wording import date, escape, table, versions

LEGEND = """\
**Compiled, not run.** No GPU was there, and no time is in this table. It shows what the compiler
made of the kernels that the launch table picks on a GPU of 132 multiprocessors, for a training step
(or a forward pass alone, "no gradient") of the combined loss: 131,072 samples and 16 regression
outputs a sample; "regression-heavy" 256 of them; "dense" is logits (N, C, 8, 8); "few rows" 100
samples; "one row" is logits (C,). Counting and scaling kernels are left out.

- *tile*: rows × columns of logits that a program holds at a time, by so many warps.
- *registers* a thread, and *spilled* bytes a thread: stack and local memory. In parentheses what
  the assembler spills unforced, to fit one more program on a multiprocessor.
- *resident*: programs that fit a multiprocessor of sm_90 by registers, shared memory and warps.
- *logits read*, *gradient written*, *outputs read*: bits that a load or a store moves for a thread,
  × how many such instructions PTX has. Beside the wide ones, the target's own logit is read alone.
  A row that is read ahead has its loads twice, before the loop and in it. A gradient has two
  stores, of which a row takes one. The outputs of the regression head are read in whole tiles, and
  in code of its own for what is left at the end.
- *instructions*: of SASS, in the loop over rows of logits, from the branch's goal to the branch,
  each counted once whether it is executed or not (the slow path of a division is in it). *A row*:
  what the warps of a program issue for one row; a loop over the blocks of a row counts once a
  block, the last, shorter one too. *A logit*: what a thread executes for one, 32 × that / C. What
  a program does before and after the loop does not count. A row that is split has two lines, whose
  figures add up; the second has no such loop where nothing is written. *An element*: what a thread
  executes for an element of the regression head, which costs memory three times its size.
- *bytes*: that memory moves for a logit and its gradient, class index, probability or mask; the
  second read of a row that is longer than a block is not in it, since the L2 cache may have it.
- *instructions a byte*: of those a logit. A multiprocessor issues at most 128 a clock."""
HEAD = (
    "family", "kernel", "programs", "tile", "registers", "spilled", "resident", "logits read",
    "gradient written", "instructions a row", "a logit", "bytes", "instructions a byte",
    "outputs read", "instructions an element",
)  # fmt: skip

Row = dict[str, Any]


def markdown(results: dict[str, Any]) -> str:
    """The whole table."""
    rows = results["rows"]
    spills = sum(bool(row["spilled"]) for row in rows)
    parts = [
        f"# Machine code for {results['target']}: compiled, not run",
        f"```\n{results['command']}\n```",
        f"{date(results)}, {versions(results)}, commit {results['environment']['commit']}.",
        LEGEND,
        table(HEAD, [_line(row) for row in rows], "llrlrrrllrrrrlr"),
        f"{spills} of {len(rows)} launches spill for want of registers.",
    ]
    return "\n\n".join(parts) + "\n"


def _line(row: Row) -> list[str]:
    tile, unforced = row["tile"], row["unforced"]
    return [
        escape(row["family"]),
        escape(row["kernel"]),
        f"{row['programs']:,}",
        f"{tile['rows']} × {tile['columns']}, {tile['warps']} warps",
        str(row["registers"]),
        f"{row['spilled']}" + (f" ({unforced})" if unforced else ""),
        str(row["resident"]),
        _widths(row["logits_read_bits"]),
        _widths(row["gradient_written_bits"]),
        _count(row["warp_instructions_a_row"]),
        _count(row["instructions_a_logit"]),
        _count(row["bytes_a_logit"]),
        _count(row["instructions_a_logit"] / (row["bytes_a_logit"] or 1)),
        _widths(row["outputs_read_bits"]),
        _count(row["instructions_an_element"]),
    ]


def _widths(bits: dict[str, int]) -> str:
    return ", ".join(f"{width} × {count}" for width, count in bits.items()) or "–"


def _count(value: float) -> str:
    return "–" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
