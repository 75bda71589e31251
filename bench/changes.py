"""The rule of `fused-loss bench compare A B`: what got slower from run A to run B.

Times of two runs say little, ratios within a run much, so a provider's time is taken as a multiple
of another's in the same run: the unit. Let

    a, b        that ratio of the medians in A and in B
    [a₁, a₉]    the first and last decile of the ratio within each round of A (the providers of a
    [b₁, b₉]    round are timed one after another); the same in B

Then a case, phase and provider that both files have got slower if b / a > threshold and b₁ > a₉,
and faster if a / b > threshold and a₁ > b₉: the medians differ by more than the threshold AND the
intervals do not overlap. Anything else is unchanged. This must hold in every unit: every provider
but this package's that both files timed there, or the one that `--to` names. One unit alone would
not do: where eager was disturbed in A, everything beside it seems slower in B. Of the units, the
tables name the one in which the change is least.

What was crowded in A or in B is not judged: with a core taken away, threads wait for each other at
every barrier, and ratios of the same code differ tenfold. What serves as a floor (the copy, the
model alone) is a unit and is not judged itself: it is the machine.

Only this package decides the exit code: a provider of ours that got slower is a regression, and so
is one that had a time in A and is wrong or fails in B. What peers did is listed all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fused_loss.bench.stored import FLOORS, OURS, Ratio, ResultsError, Row, ratio

THRESHOLD = 1.2
DERIVED = ("bytes_moved", "flops")  # of a case: follow from the rest
BROKEN = ("wrong", "failed")


class Key(NamedTuple):
    """A measurement that may be found in both files: `definition` is the whole case, in JSON."""

    case: str
    phase: str
    provider: str
    definition: str


class Change(NamedTuple):
    """A measurement in both files, and its time as a multiple of the unit's."""

    key: Key
    unit: str
    before: Ratio
    after: Ratio

    @property
    def factor(self) -> float:
        """How many times slower it has become."""
        return self.after.value / self.before.value

    def slower(self, threshold: float) -> bool:
        """Whether it is by more than the threshold, and beyond the spread of both runs."""
        return self.factor > threshold and self.after.low > self.before.high

    def faster(self, threshold: float) -> bool:
        """The same the other way round."""
        return 1 / self.factor > threshold and self.before.low > self.after.high


@dataclass
class Comparison:
    """Two runs against each other.

    Attributes:
        slower: By how much, the most first.
        faster: The same, the most first.
        unchanged: How many are neither.
        broken: Ours, timed in A, and what they are in B and why.
        only_in: The measurements of A without one in B, and of B without one in A.
        crowded: How many both files have, and at least one of them on a crowded machine.
        without_unit: How many of ours both files have, with no provider to take the ratio to.
    """

    slower: list[Change] = field(default_factory=list)
    faster: list[Change] = field(default_factory=list)
    unchanged: int = 0
    broken: list[tuple[Key, str]] = field(default_factory=list)
    only_in: tuple[list[Key], list[Key]] = ([], [])
    crowded: int = 0
    without_unit: int = 0

    @property
    def regressions(self) -> list[Key]:
        """What the exit code speaks of."""
        slower = [change.key for change in self.slower]
        return [k for k in slower if k.provider.startswith(OURS)] + [k for k, _ in self.broken]


def compare(
    before: dict[str, Any],
    after: dict[str, Any],
    threshold: float = THRESHOLD,
    to: str | None = None,
) -> Comparison:
    """Sort every measurement of two runs by the rule of the module.

    Args:
        before: Run A.
        after: Run B.
        threshold: The least factor that counts.
        to: The only unit; None: every provider but ours.

    Raises:
        ResultsError: The files have no measurement in common that could be judged.
    """
    old, new = _rows(before), _rows(after)
    beside = _beside(old, new, to)
    found = Comparison(only_in=(_only(old, new), _only(new, old)))
    for key, row in old.items():
        other = new.get(key)
        if other is None or not _has_time(row):
            continue
        if other["status"] in BROKEN and key.provider.startswith(OURS):
            found.broken.append((key, f"{other['status']}: {other['reason']}"))
        if not _has_time(other) or key.provider in (to, *FLOORS):
            continue
        if row["crowded"] or other["crowded"]:
            found.crowded += 1
        else:
            changes = [
                Change(key, unit.provider, ratio(row, old[unit]), ratio(other, new[unit]))
                for unit in beside[key._replace(provider="")]
                if unit != key
            ]
            _judge(found, key, changes, threshold)
    if not (found.slower or found.faster or found.unchanged or found.broken):
        raise ResultsError(_nothing(found, to))
    found.slower.sort(key=lambda change: -change.factor)
    found.faster.sort(key=lambda change: change.factor)
    return found


def _beside(old: dict[Key, Row], new: dict[Key, Row], to: str | None) -> dict[Key, list[Key]]:
    """The units of each case and phase, by a key without a provider."""
    units: dict[Key, list[Key]] = {}
    for key, row in old.items():
        listed = units.setdefault(key._replace(provider=""), [])
        wanted = key.provider == to if to else not key.provider.startswith(OURS)
        if wanted and _has_time(row) and _has_time(new.get(key)):
            listed.append(key)
    return units


def _judge(found: Comparison, key: Key, changes: list[Change], threshold: float) -> None:
    """Put a measurement where the rule says."""
    if not changes:
        found.without_unit += key.provider.startswith(OURS)
    elif all(change.slower(threshold) for change in changes):
        found.slower.append(min(changes, key=lambda change: change.factor))
    elif all(change.faster(threshold) for change in changes):
        found.faster.append(max(changes, key=lambda change: change.factor))
    else:
        found.unchanged += 1


def _nothing(found: Comparison, to: str | None) -> str:
    if found.crowded:
        return (
            f"nothing can be judged: all {found.crowded} measurements in common were crowded by "
            "other processes in one of the runs. Repeat both on a quiet machine"
        )
    beside = f"timed beside {to!r}" if to else "timed beside another"
    return f"the files share no case, phase and provider {beside}"


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
