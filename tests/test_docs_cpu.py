"""docs/cpu.md: its figures are those of the committed run, its constants those of the code."""

import re
from pathlib import Path

import pytest

from fused_loss.bench.cases import Phase
from fused_loss.bench.stored import COMPILED, EAGER, fastest, in_phase, in_place, load, ours, ratio
from fused_loss.bench.suites import SUITES
from fused_loss.bench.wording import times
from fused_loss.kernels import eager_numbers, eager_tiles, native

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cpu.md").read_text(encoding="utf-8")
RESULTS = load(ROOT / "bench" / "results" / "epyc-2-cores")


def table(head):
    """The cells of the table that begins with this head, a list a line."""
    (found,) = re.findall(rf"^{re.escape(head)}.*\n\|[ -:|]*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]


def records(phase):
    return {record["case"]["name"]: record for record in in_phase(RESULTS, phase.value)}


def over(rival, mine):
    compared = ratio(rival, mine)
    return "≈ " * compared.unclear + times(compared.value)


def figures(record, mine):
    rivals = fastest(record, EAGER), fastest(record, COMPILED)
    return [*(over(rival, mine) for rival in rivals), f"{mine['peak_logits']:.2f}"]


def test_the_reach_is_that_of_the_run():
    by_case = records(Phase.TRAINING)
    lines = table("| goal | case | over eager |")
    for _, case, *found, _ in lines:
        assert found == figures(by_case[case], ours(by_case[case])), case
    assert {case for _, case, *_ in lines} == {case.name for case in SUITES["cpu"]}


def test_forward_alone_is_that_of_the_run():
    by_case = records(Phase.FORWARD)
    lines = table("| case | over eager | over torch.compile | memory |")
    for case, *found in lines:
        assert found == figures(by_case[case], ours(by_case[case])), case
    assert [case for case, *_ in lines] == [case.name for case in SUITES["cpu"]]


def test_in_place_is_that_of_the_run():
    by_case = records(Phase.TRAINING)
    lines = table("| case | over eager | memory |")
    for case, *found in lines:
        mine = in_place(by_case[case])
        wanted = [over(fastest(by_case[case], EAGER), mine), f"{mine['peak_logits']:.2f}"]
        assert found == wanted, case
    assert {case for case, *_ in lines} == {name for name, r in by_case.items() if in_place(r)}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("2^19 logits", native.MOST_LOGITS == 1 << 19),
        ("2^21 regression outputs", native.MOST_ERRORS == 1 << 21),
        ("about a million elements", eager_tiles.BLOCK_ELEMENTS == 1 << 20),
        ("more than 32768 values", eager_numbers.LONG_SUM == 32768),
    ],
)
def test_what_it_says_of_the_code_is_so(said, value):
    assert said in PAGE
    assert value


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
