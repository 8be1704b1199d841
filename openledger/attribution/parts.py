"""The scores of several adapters' parts of one pool, brought together.

A name's adapter may have been replaced within the period, by one over another base model too. Each part is measured
with its own adapter, index and base; settlement and a second scorer (`recompute`) add them up alike.

    I_c = sum over parts of I_pc         SE_c = sum over parts of SE_pc (an upper bound)         G = sum of G_p

What repeated rows moved is added, and clipped once, as scores are. Improvement is on each adapter's own held-out rows:
there the parts' mean counts, weighted by what their answers cost.
"""

from collections.abc import Sequence
from dataclasses import replace

from openledger.attribution.generations import repeats_of
from openledger.attribution.period import positive
from openledger.core.values import ContributorScores


def summed(parts: Sequence[ContributorScores]) -> ContributorScores:
    """The scores of use of a whole pool. Of one part they are its own."""
    if len(parts) == 1:
        return parts[0]
    people = sorted({contributor for part in parts for contributor in part.scores_nano})
    sums = {person: sum(part.repeated_nano.get(person, 0) for part in parts) for person in people}
    repeated_nano = {person: nano for person, nano in sums.items() if nano}
    return ContributorScores(
        adapter=parts[0].adapter,
        period=parts[0].period,
        method="+".join(sorted({part.method for part in parts})),
        scores_nano={person: sum(part.scores_nano.get(person, 0) for part in parts) for person in people},
        errors_nano={person: sum(part.errors_nano.get(person, 0) for part in parts) for person in people},
        gain_nano=sum(part.gain_nano for part in parts),
        quality={f"{number}.{name}": text for number, part in enumerate(parts) for name, text in part.quality.items()},
        ceilings=tuple(pair for part in parts for pair in part.ceilings),
        unpaid_nano=positive(repeated_nano),
        repeats=repeats_of(parts),
        repeated_nano=repeated_nano,
    )


def mean_improvement(parts: Sequence[tuple[ContributorScores | None, int]]) -> ContributorScores | None:
    """Improvement of the adapters that served, each with what its answers cost in nano-OPEN. None where one has none:
    what it earned can't be divided by what another improved."""
    whole_nano = sum(fees_nano for _, fees_nano in parts)
    found = [(improvement, fees_nano) for improvement, fees_nano in parts if improvement is not None]
    if len(found) < len(parts) or not whole_nano:
        return None
    if len(found) == 1:
        return found[0][0]
    return summed([_scaled(improvement, fees_nano, whole_nano) for improvement, fees_nano in found])


def _scaled(scores: ContributorScores, part: int, whole: int) -> ContributorScores:
    return replace(
        scores,
        scores_nano={name: value * part // whole for name, value in scores.scores_nano.items()},
        errors_nano={name: -(-value * part // whole) for name, value in scores.errors_nano.items()},
        unpaid_nano={name: -(-value * part // whole) for name, value in scores.unpaid_nano.items() if part},
        repeated_nano={name: -(-value * part // whole) for name, value in scores.repeated_nano.items() if part},
        gain_nano=scores.gain_nano * part // whole,
    )
