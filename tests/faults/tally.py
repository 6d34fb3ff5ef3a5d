"""What the answers around a fault come to: right ones, refusals, lost ones and wrong ones. No clock, no network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

IN_A_ROW = 20
"""So many right answers in a row are a recovery."""


@dataclass(frozen=True)
class Allowed:
    """What a fault may do: the refusals that are expected, whether calls may be lost, and tokens with their store."""

    refusals: frozenset[str] = frozenset()
    lost: bool = False
    gone: bool = False


@dataclass(frozen=True)
class Span:
    """When a fault began, when it ended, and when the first of the right answers in a row was given."""

    began: float
    ended: float
    recovered: float

    def touches(self, outcome):
        return outcome.ended >= self.began and outcome.began <= self.recovered


@dataclass
class Tally:
    """What came of the calls that a fault could touch; `wrong` also counts what went wrong without a fault."""

    right: int = 0
    slowest: float = 0.0
    refused: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    wrong: Counter = field(default_factory=Counter)


def recovered_at(outcomes, ended):
    """Return when the first of IN_A_ROW right answers to calls made after the fault was given; None if none yet."""
    row = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.ended):
        if outcome.began < ended:
            continue
        row = [*row, outcome.ended] if outcome.kind == "right" else []
        if len(row) == IN_A_ROW:
            return row[0]
    return None


def tally(outcomes, span, allowed):
    """Return what the outcomes come to; what a fault does not explain is wrong."""
    result = Tally()
    for outcome in outcomes:
        touched = span.touches(outcome)
        match outcome.kind:
            case "right":
                result.right += touched
                if touched:
                    result.slowest = max(result.slowest, outcome.ended - outcome.began)
            case "refused" if touched and outcome.what in allowed.refusals:
                result.refused[outcome.what] += 1
            case "lost" if touched and allowed.lost:
                result.lost[outcome.what] += 1
            # Later than that nothing of it may be in a store that has come back.
            case "gone" if allowed.gone and span.began <= outcome.ended <= span.recovered:
                result.lost[outcome.what] += 1
            case "refused":
                result.wrong[f"refused with {outcome.what}" + ("" if touched else " without a fault")] += 1
            case "lost":
                result.wrong[f"lost: {outcome.what}" + ("" if touched else ", without a fault")] += 1
            case _:
                result.wrong[outcome.what] += 1
    return result
