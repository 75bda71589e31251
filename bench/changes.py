"""The rule of `fused-loss bench compare A B`: what got slower from run A to run B.

Times of two runs say little, ratios within a run much, so a provider's time is taken as a multiple
of another's in the same run: eager's, or the one that `--to` names. Let

    a, b        that ratio of the medians in A and in B
    [a₁, a₉]    the first and last decile of the ratio within each round of A (the providers of a
    [b₁, b₉]    round are timed one after another); the same in B

Then a case, phase and provider that both files have got slower if b / a > threshold and b₁ > a₉,
and faster if a / b > threshold and a₁ > b₉: the medians differ by more than the threshold AND the
intervals do not overlap. Anything else is unchanged. What serves as a floor (the copy, the model
alone) is not compared: it is the machine.

Only this package decides the exit code: a provider `fused-…` that got slower is a regression, and
so is one that had a time in A and is wrong or fails in B. What peers did is listed all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fused_loss.bench.stored import FLOORS, OURS, Ratio, ResultsError, Row, ratio

THRESHOLD = 1.1
DERIVED = ("bytes_moved", "flops")  # of a case: follow from the rest
BROKEN = ("wrong", "failed")


class Key(NamedTuple):
    """A measurement that may be found in both files: `definition` is the whole case, in JSON."""

    case: str
    phase: str
    provider: str
    definition: str


class Change(NamedTuple):
    """A measurement in both files."""

    key: Key
    before: Ratio
    after: Ratio
    crowded: bool  # whether other processes wanted the same cores in either run

    @property
    def factor(self) -> float:
        """How many times slower it has become."""
        return self.after.value / self.before.value


@dataclass
class Comparison:
    """Two runs against each other.

    Attributes:
        slower: By how much, the most first.
        faster: The same, the most first.
        unchanged: How many are neither.
        broken: Ours, timed in A, and what they are in B and why.
        only_in: The measurements of A without one in B, and of B without one in A.
        without_base: How many both files have, with no provider to take the ratio to.
    """

    slower: list[Change] = field(default_factory=list)
    faster: list[Change] = field(default_factory=list)
    unchanged: int = 0
    broken: list[tuple[Key, str]] = field(default_factory=list)
    only_in: tuple[list[Key], list[Key]] = ([], [])
    without_base: int = 0

    @property
    def regressions(self) -> list[Key]:
        """What the exit code speaks of."""
        slower = [change.key for change in self.slower]
        return [k for k in slower if k.provider.startswith(OURS)] + [k for k, _ in self.broken]


def compare(
    before: dict[str, Any], after: dict[str, Any], threshold: float = THRESHOLD, to: str = "eager"
) -> Comparison:
    """Sort every measurement of two runs by the rule of the module.

    Raises:
        ResultsError: The files have no measurement in common that could be compared.
    """
    old, new = _rows(before), _rows(after)
    found = Comparison(only_in=(_only(old, new), _only(new, old)))
    for key, row in old.items():
        other = new.get(key)
        if other is None or not _has_time(row):
            continue
        if other["status"] in BROKEN and key.provider.startswith(OURS):
            found.broken.append((key, f"{other['status']}: {other['reason']}"))
        if not _has_time(other) or key.provider in (to, *FLOORS):
            continue
        ratios = _ratio(old, key, to), _ratio(new, key, to)
        if ratios[0] and ratios[1]:
            crowded = row["crowded"] or other["crowded"]
            _sort(found, Change(key, ratios[0], ratios[1], crowded), threshold)
        else:
            found.without_base += 1
    if not (found.slower or found.faster or found.unchanged or found.broken):
        raise ResultsError(f"the files share no case, phase and provider timed beside {to!r}")
    found.slower.sort(key=lambda change: -change.factor)
    found.faster.sort(key=lambda change: change.factor)
    return found


def _sort(found: Comparison, change: Change, threshold: float) -> None:
    """Put a change where the rule says."""
    if change.factor > threshold and change.after.low > change.before.high:
        found.slower.append(change)
    elif 1 / change.factor > threshold and change.before.low > change.after.high:
        found.faster.append(change)
    else:
        found.unchanged += 1


def _rows(results: dict[str, Any]) -> dict[Key, Row]:
    """Every row of a file. A case counts as the same only where all that defines it is."""
    rows = {}
    for record in results["records"]:
        case = record["case"]
        definition = {name: value for name, value in case.items() if name not in DERIVED}
        words = json.dumps(definition, sort_keys=True)
        for row in record["providers"]:
            key = Key(case["name"], record["phase"], row["name"], words)
            rows[key] = row | {"crowded": record["crowded"]}
    return rows


def _has_time(row: Row | None) -> bool:
    return bool(row and row.get("median_s"))


def _only(these: dict[Key, Row], those: dict[Key, Row]) -> list[Key]:
    """What has a time here and is not there at all, or without a time."""
    return [key for key, row in these.items() if _has_time(row) and not _has_time(those.get(key))]


def _ratio(rows: dict[Key, Row], key: Key, to: str) -> Ratio | None:
    base = rows.get(key._replace(provider=to))
    return ratio(rows[key], base) if base and base.get("median_s") else None
