"""A contribution's way through the gate as far as the contribution alone leads: signature, row ids, checks of the text,
words and sketches.

Needs no Datanet, no index and no storage, so that any process of the installation can do it, before or while another
contribution is judged and stored. What it found is bound to the contribution, to the rules and to the gate that it was
found by, and is made anew where one of them is another by then. The signature is checked here, so that nothing unsigned
is worked at, and again by whoever stores: what it stands over is not taken from another process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openledger.core.signed import contribution_id
from openledger.core.values import Contribution
from openledger.datanets.contribution import check_signature, row_ids
from openledger.datanets.dedupe import PackedFeatures, packed, unpacked
from openledger.datanets.gate import (
    GATE_VERSION,
    NO_DETECTORS,
    NO_RULES,
    Detectors,
    Examined,
    Rules,
    examine,
    rare_collections,
)
from openledger.datanets.seals import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A contribution without its rows: what `Datanets.admit` needs to know of it."""

    contribution_id: str
    datanet: str
    contributor_id: str
    public_key: str
    num_rows: int
    digest: str  # under which it may have been sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the gate found of a contribution; `examined` has its drafts in order."""

    contribution_id: str
    gate_version: str
    rules: Rules
    detectors: tuple[str, ...]
    row_ids: tuple[str, ...]
    examined: tuple[Examined, ...]

    def fits(self, contribution: Contribution, detectors: Detectors, rules: Rules) -> bool:
        """Whether it is what `prepare` would find now."""
        found_by = (self.contribution_id, self.gate_version, self.rules, self.detectors)
        return found_by == (contribution_id(contribution), GATE_VERSION, rules, tuple(sorted(detectors)))

    def __reduce__(self) -> tuple[Callable[..., "Prepared"], tuple[Any, ...]]:
        features = packed([one.features for one in self.examined])
        said = [(one.reasons, one.doubts) if one.reasons or one.doubts else None for one in self.examined]
        values = (self.contribution_id, self.gate_version, self.rules, self.detectors, self.row_ids)
        return _arrived, (*values, said, features)


def announced(contribution: Contribution) -> Announced:
    return Announced(
        contribution_id=contribution_id(contribution),
        datanet=contribution.datanet,
        contributor_id=contribution.contributor_id,
        public_key=contribution.public_key,
        num_rows=len(contribution.drafts),
        digest=digest_of(contribution),
    )


def prepare(contribution: Contribution, detectors: Detectors = NO_DETECTORS, rules: Rules = NO_RULES) -> Prepared:
    """Raises InvalidInput (`invalid_signature` and others) and TooLarge as `check_signature`."""
    check_signature(contribution)
    with rare_collections():
        return Prepared(
            contribution_id=contribution_id(contribution),
            gate_version=GATE_VERSION,
            rules=rules,
            detectors=tuple(sorted(detectors)),
            row_ids=tuple(row_ids(contribution)),
            examined=tuple(examine(contribution.drafts, detectors, rules)),
        )


def _arrived(
    identifier: str,
    gate_version: str,
    rules: Rules,
    detectors: tuple[str, ...],
    ids: tuple[str, ...],
    said: Sequence[tuple[tuple[str, ...], tuple[str, ...]] | None],
    features: PackedFeatures,
) -> Prepared:
    nothing: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    examined = (Examined(*(one or nothing), of) for one, of in zip(said, unpacked(features), strict=True))
    return Prepared(
        contribution_id=identifier,
        gate_version=gate_version,
        rules=rules,
        detectors=detectors,
        row_ids=ids,
        examined=tuple(examined),
    )
