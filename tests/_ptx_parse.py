"""PTX as Triton writes it, read into instructions: no meaning is looked at here."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

WIDTHS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64}


class Register(NamedTuple):
    """A place in the register file."""

    slot: int
    bits: int  # 1 for a predicate
    name: str


class Immediate(NamedTuple):
    """The bits of a literal, as a number that may be negative."""

    value: int


class Address(NamedTuple):
    """[base + offset]; the base is a register, or the name of a parameter or of memory."""

    base: Register | str
    offset: int


Operand = Register | Immediate | Address | str | None | list  # a vector; None: "_"


class Instruction(NamedTuple):
    """One statement; `guard` is the predicate that it depends on, and the value that it wants."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: tuple[Register, bool] | None
    text: str


@dataclass(frozen=True, eq=False)
class Code:
    """A kernel."""

    name: str
    parameters: list[tuple[str, int]]  # names, bytes
    threads: int  # of a program
    registers: list[Register]
    instructions: list[Instruction]
    labels: dict[str, int]  # which instruction comes next


class _Reader:
    """Names to registers, text to operands."""

    def __init__(self) -> None:
        self.registers: dict[str, Register] = {}  # those in scope
        self.all: list[Register] = []

    def declare(self, kind: str, names: str) -> None:
        for name in re.split(r",\s*", names):
            prefix, _, count = name.rstrip(">").partition("<")
            for one in [f"{prefix}{i}" for i in range(int(count))] if count else [prefix]:
                self.registers[one] = Register(len(self.all), WIDTHS[kind], one)
                self.all.append(self.registers[one])

    def instruction(self, text: str) -> Instruction:
        guard, statement = re.fullmatch(r"(?:@(\S+)\s+)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        opcode, _, rest = statement.partition(" ")
        operands = tuple(self.operand(part) for part in _split(rest))
        if guard is None:
            return Instruction(opcode, operands, None, text)
        register = self.registers[guard.removeprefix("!")]
        return Instruction(opcode, operands, (register, guard[0] != "!"), text)

    def operand(self, text: str) -> Operand:
        if text[0] == "{":
            return [self.operand(part) for part in _split(text[1:-1])]
        if text[0] == "[":
            base, _, offset = (part.strip() for part in text[1:-1].partition("+"))
            known = self.registers.get(base, base)
            return Address(known, int(offset or "0", 0))
        if "|" in text:
            return [self.operand(part) for part in text.split("|")]
        if text == "_":
            return None
        if text in self.registers:
            return self.registers[text]
        return _immediate(text) or text


def _immediate(text: str) -> Immediate | None:
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return Immediate(int(text[2:], 16))
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Immediate(int(text.rstrip("U"), 0))
    return None


def _split(text: str) -> list[str]:
    """At the commas that no bracket encloses."""
    return [part.strip() for part in re.split(r",(?![^{[]*[}\]])", text) if part.strip()]


@functools.lru_cache(maxsize=64)
def parse(ptx: str) -> Code:
    """The one kernel of a module.

    Raises:
        ValueError: It has none.
    """
    head = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*?)^\}", ptx, re.DOTALL | re.MULTILINE)
    if head is None:
        raise ValueError("no kernel in this PTX")
    name, given, directives, body = head.groups()
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", directives)
    parameters = [
        (parameter, int(bits) // 8)
        for bits, parameter in re.findall(r"\.param\s+\.[a-z](\d+)\s[^,]*?(\w+)\s*(?:,|$)", given)
    ]
    reader = _Reader()
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    body = re.sub(r"//[^\n]*", "", body)
    body = re.sub(r"^\s*\.(loc|pragma|file)\b[^\n]*$", "", body, flags=re.MULTILINE)
    body = re.sub(r"\{(\s*\.reg[^{}]*;[^;]*;)\s*\}", r"\1", body)  # a scope of its own
    body = re.sub(r"^([$\w]+):", r"\1:;", body, flags=re.MULTILINE)
    for statement in (" ".join(part.split()) for part in body.split(";")):
        if statement.endswith(":"):
            labels[statement[:-1]] = len(instructions)
        elif statement.startswith(".reg"):
            _, kind, names = statement.split(" ", 2)
            reader.declare(kind[1:], names)
        elif statement:
            instructions.append(reader.instruction(statement))
    count = int(threads[1]) if threads else 32
    return Code(name, parameters, count, reader.all, instructions, labels)
