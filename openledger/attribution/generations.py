"""From what each generation of a derived adapter owes its own contributors to the scores that its pool is paid by.

    k_g  = f_g G / D_g         f_g: the part of generation g by `lineage/1`, G: the served adapter's gain over the base,
    I_c  = sum over g of k_g I_gc                  D_g: what g gained over what it began from
    SE_c = sum over g of k_g SE_gc

I_gc and SE_gc are influence and error of g's own rows on the same answers (`period.py`), measured against D_g. In a
line where every generation added something f_g G is D_g, so k_g is 1 and influences add up; where one took away, those
before it are scaled to what is left of what they brought. The f_g sum to one at most, so by the index all I_c together
come to G at most, and the shares rule then holds as for an adapter of one generation: a contributor's sum is clipped
once, over all generations. So is what of it repeated rows moved (`repeated_nano`).

Errors are added, not their squares: generations are often trained on the same rows, and measured on the same answers by
instruments of one kind, so their errors may be one error. The sum is its upper bound.

Answers count under the ceiling of the adapter that gave them, so every generation states the same `ceilings`, and they
are those of the whole.

A merge has no rows of its own: all that it gained is its parents'. All sums are fractions, rounded once.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from openledger.adapters.lineage import LINEAGE_RULE, Generation, Lineage, generation_shares
from openledger.attribution.period import positive
from openledger.core.errors import InvalidInput
from openledger.core.values import ContributorScores

_SHORT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationScores:
    """One generation, measured on the answers of one part of a pool. `gain_nano` is over the base, `parent_gains_nano`
    each parent's part of the gain of what it began from; `scores` are of its own rows, None for a merge."""

    gain_nano: int
    parent_gains_nano: Mapping[str, int | Fraction]
    scores: ContributorScores | None

    @property
    def added_nano(self) -> Fraction:
        """What its own rows brought."""
        return Fraction(self.gain_nano) - sum(Fraction(part) for part in self.parent_gains_nano.values())


def combined(lineage: Lineage, digest: str, measured: Mapping[str, GenerationScores]) -> ContributorScores:
    """The scores of the adapter `digest`, all its generations' contributors in one.

    Raises NotFound (`unmeasured_generation`), InvalidInput (`invalid_generation`) for measures that don't fit the
    cards.
    """
    factors = _factors(lineage, digest, measured)
    scores, errors, repeated = (defaultdict[str, Fraction](Fraction) for _ in range(3))
    for generation, factor in factors.items():
        if (own := measured[generation].scores) is not None:
            for name in own.scores_nano:
                scores[name] += factor * own.scores_nano[name]
                errors[name] += factor * own.errors_nano[name]
                repeated[name] += factor * own.repeated_nano.get(name, 0)
    told = [each.scores for each in measured.values() if each.scores is not None]
    if not told:
        raise InvalidInput(
            f"no generation of {digest} has rows of its own", code="invalid_generation", param="measured"
        )
    repeated_nano = {name: nano for name in sorted(repeated) if (nano := round(repeated[name]))}
    return ContributorScores(
        adapter=told[0].adapter,
        period=told[0].period,
        method=f"{'+'.join(sorted({own.method for own in told}))} through {LINEAGE_RULE}",
        scores_nano={name: round(scores[name]) for name in sorted(scores)},
        errors_nano={name: math.ceil(errors[name]) for name in sorted(errors)},
        gain_nano=measured[digest].gain_nano,
        quality=_quality(factors, measured),
        ceilings=_one_of(told),
        unpaid_nano=positive(repeated_nano),
        repeats=repeats_of([own for generation in factors if (own := measured[generation].scores)]),
        repeated_nano=repeated_nano,
    )


def repeats_of(scores: Sequence[ContributorScores]) -> tuple[tuple[str, str, str, int], ...]:
    """The rows that any of them leaves unpaid, each once: a row may be trained on in several adapters."""
    return tuple({repeat[0]: repeat for own in scores for repeat in own.repeats}.values())


def _factors(lineage: Lineage, digest: str, measured: Mapping[str, GenerationScores]) -> dict[str, Fraction]:
    """k of each generation, the served one first; all zero where it gained nothing."""
    told = {
        name: Generation(gain_nano=own.gain_nano, parent_gains_nano=own.parent_gains_nano, own_shares_ppb={})
        for name, own in measured.items()
    }
    parts, gain_nano = generation_shares(lineage, digest, told), max(0, measured[digest].gain_nano)
    return {
        name: parts[name] * gain_nano / measured[name].added_nano if parts[name] else Fraction(0)
        for name in lineage.generations(digest)
    }


def _one_of(told: Sequence[ContributorScores]) -> tuple[tuple[int, int], ...]:
    if any(own.ceilings != told[0].ceilings for own in told):
        raise InvalidInput(
            "the generations were measured under different ceilings",
            code="invalid_generation",
            param="ceilings",
            fix="measure each under that of the adapter that answered: recompute(..., answered_by=...)",
        )
    return told[0].ceilings


def _quality(factors: Mapping[str, Fraction], measured: Mapping[str, GenerationScores]) -> dict[str, str]:
    """How each generation was measured, its numbers after its place in the line: 0 is the served adapter."""
    found = {"generations": str(len(factors)), "lineage_rule": LINEAGE_RULE}
    for place, (digest, factor) in enumerate(factors.items()):
        own = measured[digest]
        found[f"{place}.adapter"] = digest[:_SHORT]
        found[f"{place}.gain_nano"] = str(own.gain_nano)
        if own.scores is not None:
            found[f"{place}.added_nano"] = str(round(own.added_nano))
            found[f"{place}.factor"] = f"{float(factor):.6g}"
            found[f"{place}.method"] = own.scores.method
            found.update({f"{place}.{name}": text for name, text in own.scores.quality.items()})
    return found
