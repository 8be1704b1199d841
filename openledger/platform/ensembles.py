"""Which adapters may answer one request together, and for how much each.

With weights w_i the answer is y = W x + sum of w_i B_i A_i x (`openlora.ensembles`). It is sold once for each adapter,
at this part of its prices, rounded up to the unit's smallest part a token:

    min(1, w_i)

So each pool of (adapter, period) gets its part of the fee, and log, settlement and audit know nothing but sales. What
an adapter costs depends on its own weight alone: were weights set in proportion to each other, an adapter that costs
nothing and does nothing would make all others cheap. Rounded up, no price becomes nothing. Weights are positive: what
an adapter taught can't be taken away from an answer and paid for.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from openledger.adapters.registry import RegisteredAdapter
from openledger.core.errors import InvalidInput
from openledger.core.values import AdapterTerms
from openledger.platform.answering import Part
from openledger.platform.bases import Bases, ServedBase

MAX_ADAPTERS = 8  # each is a hold and a sale of its own


def ensemble_of(
    bases: Bases, model: str, members: Sequence[tuple[RegisteredAdapter, float]]
) -> tuple[ServedBase, tuple[Part, ...]]:
    """The base called `model`, and the parts of its adapters. Raises InvalidInput (`invalid_ensemble`), and as
    `Bases.of`."""
    base, adapters = bases.named(model), [adapter for adapter, _ in members]
    for adapter in adapters:
        if adapter.is_base:
            raise _invalid(f"{adapter.name!r} is a base model, which answers in any case", "leave it out")
        if bases.of(adapter) is not base:
            raise _invalid(
                f"{adapter.name!r} is of the base {bases.name_of(adapter)!r}, not of {model!r}", "name one base"
            )
    if not 0 < len(adapters) <= MAX_ADAPTERS:
        raise _invalid(f"{len(adapters)} adapters at once, at most {MAX_ADAPTERS}", "name fewer")
    if len({adapter.digest for adapter in adapters}) < len(adapters):
        raise _invalid("an adapter is named twice", "name each once, with the sum of its weights")
    if not all(0 < weight < float("inf") for _, weight in members):
        raise _invalid("weights must be positive numbers", "leave out what shouldn't count")
    return base, tuple(_part(adapter, weight) for adapter, weight in members)


def weighted(terms: AdapterTerms, weight: float) -> AdapterTerms:
    """`terms` at the prices of an answer in which the adapter has `weight`. Exact: 0.1 is a tenth, as it is written."""
    share = min(Fraction(1), Fraction(str(weight)))
    return replace(
        terms,
        prompt_price_nano=ceil(terms.prompt_price_nano * share),
        completion_price_nano=ceil(terms.completion_price_nano * share),
    )


def _part(adapter: RegisteredAdapter, weight: float) -> Part:
    assert adapter.terms is not None
    return Part(terms=weighted(adapter.terms, weight), place=adapter.place, weight=weight)


def _invalid(message: str, fix: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_ensemble", param="adapters", fix=fix)
