"""Numbers of all rounds, and what they say about the goals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.bench.contenders import ALL, LAYERFS
from tests.bench.measure import median


@dataclass(frozen=True)
class Unit:
    """What a number means."""

    text: str
    more_is_better: bool = True
    digits: int = 0


RATE = Unit("MiB/s")
IOPS = Unit("reads/s")
SECONDS = Unit("s", more_is_better=False, digits=3)
MICROSECONDS = Unit("us/file", more_is_better=False)
MEMORY = Unit("MB", more_is_better=False)


@dataclass(frozen=True)
class Against:
    """How many times as good as `rival` layerfs is within a round, and how many times it should be."""

    rival: str
    at_least: float | None = None


@dataclass(frozen=True)
class AtMost:
    """A number of layerfs alone, noted under `text`, and what it should not exceed."""

    text: str
    limit: float
    digits: int = 2


@dataclass(frozen=True)
class Verdict:
    """What came out for one goal. `met` is None without a goal, and where nobody could be compared with."""

    text: str
    values: Sequence[float]
    goal: str
    met: bool | None
    digits: int


@dataclass
class Row:
    """One workload: numbers by contender and round, and notes about layerfs by text and round."""

    title: str
    unit: Unit
    goals: Sequence[Against | AtMost]
    numbers: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, number: float) -> None:
        self.numbers.setdefault(contender, []).append(number)

    def note(self, text: str, number: float) -> None:
        self.notes.setdefault(text, []).append(number)

    def forget(self) -> None:
        """Drops all numbers so far."""
        self.numbers.clear()
        self.notes.clear()

    def verdicts(self) -> Iterator[Verdict]:
        """One for each goal that there are numbers for."""
        for goal in self.goals:
            if isinstance(goal, Against):
                values = self._ratios(goal.rival)
                limit = "" if goal.at_least is None else f"≥ {goal.at_least:g}"
                met = median(values) >= goal.at_least if values and goal.at_least is not None else None
                yield Verdict(f"times {goal.rival}", values, limit, met, digits=2)
            else:
                values = self.notes.get(goal.text, [])
                met = median(values) <= goal.limit if values else None
                yield Verdict(goal.text, values, f"≤ {goal.limit:g}", met, goal.digits)

    def _ratios(self, rival: str) -> list[float]:
        pairs = zip(self.numbers.get(LAYERFS, ()), self.numbers.get(rival, ()), strict=False)
        return [ours / theirs if self.unit.more_is_better else theirs / ours for ours, theirs in pairs]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table: a row of medians, and below it the ratios within a round against the goals."""
    columns = [contender.name for contender in ALL]
    width = max((len(row.title) for row in rows), default=0)
    yield f"{'':{width}} {'':>8}" + "".join(f"{name:>14}" for name in columns)
    for row in rows:
        shown = {name: f"{median(values):,.{row.unit.digits}f}" for name, values in row.numbers.items()}
        others = "".join(f"   {name} {number}" for name, number in shown.items() if name not in columns)
        yield f"{row.title:{width}} {row.unit.text:>8}" + "".join(f"{shown.get(n, '-'):>14}" for n in columns) + others
        yield from (_line(verdict) for verdict in row.verdicts())


def _line(verdict: Verdict) -> str:
    if not verdict.values:
        return f"  {'-':>8} {'':22} {verdict.text:<28} {verdict.goal:<8} not measured"
    low, high = min(verdict.values), max(verdict.values)
    spread = f"[{low:,.{verdict.digits}f} … {high:,.{verdict.digits}f}]" if len(verdict.values) > 1 else ""
    says = {True: "met", False: "NOT MET", None: ""}[verdict.met]
    middle = f"{median(verdict.values):,.{verdict.digits}f}"
    return f"  {middle:>8} {spread:22} {verdict.text:<28} {verdict.goal:<8} {says}".rstrip()


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Everything that was measured, for machines."""
    return [
        {
            "workload": row.title,
            "unit": row.unit.text,
            "numbers": row.numbers,
            "goals": [
                {"what": verdict.text, "values": list(verdict.values), "goal": verdict.goal, "met": verdict.met}
                for verdict in row.verdicts()
            ],
        }
        for row in rows
    ]
