"""Loops in a listing that was written by hand, over a source of two functions."""

from pathlib import Path

import pytest

from fused_loss.bench.sass import Work, work

SOURCE = (
    "def row_tile():\n    pass\n\n\ndef read_classes():\n    pass\n\n\ndef other():\n    pass\n"
)
ROW, READ, OTHER = 2, 6, 10  # lines


@pytest.fixture
def listing(tmp_path: Path):
    """From words: "@LINE", "LABEL:", "<LABEL" for a branch to it, or an instruction."""
    (tmp_path / "source.py").write_text(SOURCE)

    def write(words: str) -> str:
        lines = []
        for word in words.split():
            if word.startswith("@"):
                lines.append(f'\t//## File "{tmp_path / "source.py"}", line {word[1:]}')
            elif word.endswith(":"):
                lines.append(f".L_x_{word}")
            else:
                text = f"@!P0 BRA `(.L_x_{word[1:]})" if word.startswith("<") else f"{word} R1"
                lines.append(f"        /*{16 * len(lines):04x}*/     {text} ;")
        return "\n".join(lines)

    return write


def test_a_loop_over_rows(listing):
    text = listing(f"FADD @{ROW} 1: LDG.E.128 FADD FADD STG.E.128 <1 EXIT")
    assert work(text) == Work(5, ())


def test_loops_over_blocks_within_it_count_apart(listing):
    text = f"@{ROW} 1: FADD @{READ} 2: LDG.E FMUL <2 3: LDG.E <3 @{ROW} FADD <1"
    assert work(listing(text)) == Work(3, (3, 2))


def test_a_slice_has_no_loop_around_its_blocks(listing):
    assert work(listing(f"@{READ} LDG.E 2: LDG.E FMUL <2 EXIT")) == Work(0, (3,))


def test_other_loops_do_not_count(listing):
    """Those of the other head, those that touch no memory, and branches forward."""
    assert work(listing(f"@{OTHER} 1: LDG.E <1 @{ROW} 2: FADD <2 <3 LDG.E 3: EXIT")) == Work()
