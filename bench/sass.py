"""What a program does a row of logits, counted in the machine code that nvdisasm shows.

A loop is what lies between a branch backwards and where it goes; the line of the source beside each
instruction tells which function it was made from. The loop over rows is the outermost one that
touches global memory and holds something of a function that reads or writes logits; what is nested
in it walks the blocks of a row.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

OF_LOGITS = {"row_tile", "read_classes", "write_classes", "count_possible"}
OF_ELEMENTS = {"error_tile"}


class Work(NamedTuple):
    """Instructions of a thread; each one in the loop counts, whether it is executed or not."""

    row: int = 0  # for a tile of rows, without what follows
    blocks: tuple[int, ...] = ()  # of each loop over the blocks of a row, for one block
    elements: int = 0  # for a tile of elements of the regression head


class _Instruction(NamedTuple):
    text: str
    function: str  # of the source that it was made from


class _Loop(NamedTuple):
    first: int
    last: int

    def inside(self, other: _Loop) -> bool:
        return self != other and other.first <= self.first and self.last <= other.last

    def __len__(self) -> int:
        return self.last - self.first + 1


def work(listing: str) -> Work:
    """The work of the loops over logits; nothing where there are none.

    Args:
        listing: What `nvdisasm -c -g` prints of a kernel.
    """
    instructions, labels = _parse(listing)
    found = _loops(instructions, labels)
    loops = [loop for loop in found if _touches(loop, instructions, OF_LOGITS)]
    others = [loop for loop in found if _touches(loop, instructions, OF_ELEMENTS)]
    outer = [loop for loop in loops if not any(loop.inside(other) for other in loops)]
    row = 0
    blocks: list[int] = []
    for loop in outer:
        inner = [other for other in loops if other.inside(loop)]
        if inner:
            row += len(loop) - sum(map(len, inner))
            blocks += map(len, inner)
        elif _functions(loop, instructions) >= {"row_tile"}:
            row += len(loop)
        else:  # of a slice: no loop around it
            blocks.append(len(loop))
    elements = max((len(loop) for loop in others if loop not in loops), default=0)
    return Work(row, tuple(blocks), elements)


def _parse(listing: str) -> tuple[list[_Instruction], dict[str, int]]:
    instructions: list[_Instruction] = []
    labels, function = {}, ""
    for line in listing.splitlines():
        if place := re.search(r'//## File "(.*)", line (\d+)', line):
            function = _function(place[1], int(place[2]))
        elif label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            instructions.append(_Instruction(instruction[1], function))
    return instructions, labels


def _loops(instructions: list[_Instruction], labels: dict[str, int]) -> list[_Loop]:
    found = []
    for place, (text, _) in enumerate(instructions):
        branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        if branch and labels.get(branch[1], place + 1) <= place:
            found.append(_Loop(labels[branch[1]], place))
    return found


def _touches(loop: _Loop, instructions: list[_Instruction], functions: set[str]) -> bool:
    body = instructions[loop.first : loop.last + 1]
    touches = any(re.search(r"\b(LDG|LDGSTS|STG)\b", text) for text, _ in body)
    return touches and bool(_functions(loop, instructions) & functions)


def _functions(loop: _Loop, instructions: list[_Instruction]) -> set[str]:
    return {function for _, function in instructions[loop.first : loop.last + 1]}


@functools.cache
def _spans(path: str) -> list[tuple[int, int, str]]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    ]


def _function(path: str, line: int) -> str:
    return next((name for first, last, name in _spans(path) if first <= line <= last), "")
