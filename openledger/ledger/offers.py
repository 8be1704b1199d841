"""Offers: what is for sale, by whom, and who stands for the constants that it was trained by.

    openledger.offers/1   once. From here on only what is offered is sold; names what was on sale until then
    openledger.offer/1    an adapter under a name, its seller, the version of the parameters in force, and each run that
                          it came of: the round of nonces (a Datanet's version), what that was closed for, the constant

A log without the first entry is as it was before there were offers: what was sold in it is not asked for one. After it
every answer names an adapter, a seller and rows that stand in an offer (`Offers.sell`), and every offer holds against
the log before it (`Offers.take`):

    trained      for each run: its round is drawn, was closed for that purpose, gives that constant, and at least
                 `witnesses_required` of its parties are neither its owner nor the seller, nor have a key of theirs
    withdrawal   the runs of what the seller had on sale under that name, less the contributor's rows that it names,
                 instead of it
    base         a base model by itself: nobody here trained it, and it is of no Datanet's rows

What the runs were is the seller's word, as an adapter's card is; that a round was closed for just those rows, base and
recipe is not. No money moves: each batch holds one nano-OPEN of genesis and releases it at once, and its ids follow
from what is offered, so that it is offered once.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

from openledger.core.constant import public_constant
from openledger.core.errors import Conflict, Corrupt, InvalidInput, OpenLedgerError
from openledger.core.ids import check_name, derived_id
from openledger.core.values import AdapterTerms
from openledger.ledger.accounts import check_account_id
from openledger.ledger.nonces import Purpose, Round, Rounds
from openledger.ledger.parameters import ParameterBook
from openledger.ledger.seats import seat_transfers
from openledger.ledger.signers import Signers
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

OFFERS = "openledger.offers/1"
OFFER = "openledger.offer/1"
FORMATS = frozenset({OFFERS, OFFER})
OFFERS_ACCOUNT = "holds:offers"
OFFERS_BEGUN = "offers.begun"  # the id of the first entry
Kind = Literal["trained", "withdrawal", "base"]
FindRound = Callable[[tuple[str, int]], Round | None]
KeysOf = Callable[[str], Collection[str]]
_LOT = ("adapter", "adapter_digest", "seller", "datanet", "datanet_version", "row_root")
_FIELDS = {"format", *_LOT, "kind", "instead_of", "contributor", "parameters", "trainings"}
_TRAINING = {"adapter", "datanet", "version", "purpose", "constant", "seller"}
_MADE_OF = {  # whether an offer of that kind has runs, something that it replaces, a contributor
    "trained": {(True, False, False)},
    "withdrawal": {(True, True, True), (False, True, True)},
    "base": {(False, False, False)},
}
_DIGEST = re.compile(r"[0-9a-zA-Z]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Lot:
    """What is for sale: an adapter under its name, by whom, and of which rows. A merge and a base model name none."""

    adapter: str
    adapter_digest: str
    seller: str
    datanet: str = ""
    datanet_version: int = 0
    row_root: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A run as an adapter's card tells it: on which version, of what, under which constant. `seller` earns the owner's
    part of what the adapter sells."""

    adapter: str
    datanet: str
    version: int
    purpose: Purpose
    constant: str
    seller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A lot, and why it may be sold. `instead_of` is the digest of what a withdrawal takes off sale, `contributor` is
    whose rows it is without."""

    lot: Lot
    kind: Kind = "trained"
    trainings: tuple[Training, ...] = ()
    instead_of: str = ""
    contributor: str = ""

    @property
    def replaced(self) -> Lot:
        """What a withdrawal takes the place of."""
        return replace(self.lot, adapter_digest=self.instead_of)


@dataclass(slots=True)
class Offers:
    """The offers of a log as its batches tell them. `begun` once there is the entry that asks for them. What is offered
    stands with the runs that the log tells of it: none of what was on sale before."""

    begun: bool = False
    standing: dict[Lot, tuple[Training, ...]] = field(default_factory=dict)
    numbers: Counter[Kind] = field(default_factory=Counter)

    def take(self, batch: Batch, rounds: Rounds, signers: Signers, parameters: ParameterBook) -> None:
        """`rounds`, `signers` and `parameters` are those of the log up to here. Raises Corrupt, its code saying which
        rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in FORMATS:
            if any(OFFERS_ACCOUNT in (transfer.debit, transfer.credit) for transfer in batch.transfers):
                raise _corrupt("an offer's seat is held without saying what for", "unexplained_offer")
            return
        try:
            check_shape(statement)
            self.check(statement, rounds.by_version.get, partial(signers.keys_of, held_by=signers.keys.holder),
                       parameters)  # fmt: skip
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        if batch.transfers != tuple(transfers_of(statement)):
            raise _corrupt("the transfers aren't those of the offer", "offer_differs")
        self.apply(statement)

    def check(
        self,
        statement: Statement,
        find: FindRound,
        keys_of: KeysOf,
        parameters: ParameterBook,
    ) -> None:
        """Raises Conflict where the offer, of which `check_shape` approves, may not follow on what the log says.
        `find` and `keys_of` as for `check_witnesses`."""
        if format_of(statement) == OFFERS:
            return
        if not self.begun:
            raise Conflict("no entry asks for offers yet", code="offers_not_begun", param="statement")
        offer, opened = offer_in(statement), parameters.periods.get(parameters.current)
        if opened is None or statement["parameters"] != opened.version:
            raise Conflict("it names other parameters than are in force", code="wrong_version", param="parameters")
        if offer.kind == "withdrawal":
            self._check_withdrawal(offer)
        if offer.kind == "trained":
            required = parameters.in_force["witnesses_required"]
            check_witnesses(offer.trainings, find, keys_of, required)

    def _check_withdrawal(self, offer: Offer) -> None:
        if offer.replaced not in self.standing:
            raise Conflict(
                f"{offer.lot.adapter} wasn't on sale as {offer.instead_of[:12]}",
                code="offer_without_adapter",
                param="instead_of",
            )
        if offer.trainings != self.standing[offer.replaced]:
            raise Conflict(
                f"{offer.lot.adapter} doesn't come of the runs that {offer.instead_of[:12]} was offered by",
                code="offer_of_other_runs",
                param="trainings",
            )

    def apply(self, statement: Statement) -> None:
        if format_of(statement) == OFFERS:
            self.begun = True
            self.standing |= {Lot(**dict(zip(_LOT, line, strict=True))): () for line in statement["earlier"]}
        else:
            offer = offer_in(statement)
            self.standing[offer.lot] = offer.trainings
            self.numbers[offer.kind] += 1

    def sell(self, usage: Statement) -> None:
        """Raises Corrupt (`sale_without_offer`) for an answer of what isn't offered by whom it is sold, or of other
        rows than the offer says."""
        if not self.begun:
            return
        try:
            lot = lot_of_usage(usage)
        except (KeyError, TypeError, AttributeError) as error:
            raise _corrupt(f"the sale lacks or misstates something: {error}", "malformed_statement") from error
        if lot not in self.standing:
            raise _corrupt(
                f"answer {usage['answer_id']} was sold of {lot.adapter} ({lot.adapter_digest[:12]}), which {lot.seller}"
                " hadn't offered as that",
                "sale_without_offer",
            )


def lot_of(terms: AdapterTerms) -> Lot:
    return Lot(
        adapter=terms.adapter,
        adapter_digest=terms.adapter_digest,
        seller=terms.owner_account,
        datanet=terms.datanet,
        datanet_version=terms.datanet_version,
        row_root=terms.row_root,
    )


def lot_of_usage(usage: Statement) -> Lot:
    own = {name: usage[name] for name in _LOT if name != "seller"}
    return Lot(seller=usage["accounts"]["owner"], **own)


def check_witnesses(trainings: Sequence[Training], find: FindRound, keys_of: KeysOf, num_required: int) -> None:
    """Raises Conflict (`constant_unwitnessed`) naming the first run whose constant has fewer witnesses. `find` gives a
    version's round, `keys_of` the contributors whose keys are an account's."""
    for training in trainings if num_required else ():
        known = find((training.datanet, training.version))
        reason = _why_none(known, training)
        if known is None or reason:
            raise _unwitnessed(training, num_required, reason)
        found = witnesses(known, training.seller, keys_of)
        if len(found) < num_required:
            told = f"it has {len(found)} that are nobody's of its owner or seller, of {num_required} required"
            raise _unwitnessed(training, num_required, told)


def witnesses(known: Round, seller: str, keys_of: KeysOf) -> tuple[str, ...]:
    """The parties of a round who are neither its owner nor the seller nor have a key of theirs; one of each key."""
    own = {known.owner, seller}
    taken = {key for account in own for key in keys_of(account)}
    found = []
    for party in sorted(known.digests.keys() - own):
        keys = set(keys_of(party))
        if not keys & taken:
            found.append(party)
            taken |= keys
    return tuple(found)


def begin_statement(earlier: Collection[Lot]) -> dict[str, Any]:
    """`earlier` is what was on sale before offers were asked for."""
    return {"format": OFFERS, "earlier": [[getattr(lot, name) for name in _LOT] for lot in sorted(set(earlier))]}


def offer_statement(offer: Offer, parameters: int) -> dict[str, Any]:
    return {
        "format": OFFER,
        **asdict(offer.lot),
        "kind": offer.kind,
        "instead_of": offer.instead_of,
        "contributor": offer.contributor,
        "parameters": parameters,
        "trainings": [asdict(training) for training in offer.trainings],
    }


def offer_in(statement: Statement) -> Offer:
    return Offer(
        lot=Lot(**{name: statement[name] for name in _LOT}),
        kind=statement["kind"],
        trainings=tuple(Training(**{**told, "purpose": Purpose(**told["purpose"])}) for told in statement["trainings"]),
        instead_of=statement["instead_of"],
        contributor=statement["contributor"],
    )


def check_shape(statement: Statement) -> None:
    """Raises InvalidInput unless `statement` is one of the two, with its fields and their types."""
    try:
        _check_shape(statement)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise _malformed(f"the offer lacks or misstates something: {error}") from error


def transfers_of(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`."""
    if format_of(statement) == OFFERS:
        ids, codes, reference = (OFFERS_BEGUN, f"{OFFERS_BEGUN}.end"), ("offers", "offers_end"), "offers"
    else:
        name = offer_id(offer_in(statement).lot)
        ids, codes, reference = (name, f"{name}.end"), ("offer", "offer_end"), statement["adapter"]
    return seat_transfers(ids, codes, OFFERS_ACCOUNT, reference)


def offer_id(lot: Lot) -> str:
    return derived_id("ofr", *(str(getattr(lot, name)) for name in _LOT))


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What an offer says, in words, and that `transfer` is one that it calls for. Whether its witnesses are in the log
    is for the audit to see. Raises Corrupt."""
    try:
        check_shape(statement)
        if transfer not in transfers_of(statement):
            raise _corrupt(f"{transfer.transfer_id} isn't what its statement calls for", "offer_differs")
    except InvalidInput as error:
        raise _corrupt(error.message, error.code) from error
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    """An offer in words."""
    if format_of(statement) == OFFERS:
        return [f"from here on only what is offered is sold; {len(statement['earlier'])} adapters were on sale before"]
    offer = offer_in(statement)
    told = f"{offer.lot.seller} offers {offer.lot.adapter} ({offer.lot.adapter_digest[:12]}) for sale"
    if offer.kind == "base":
        return [f"{told}: a base model by itself; no money moves"]
    if offer.kind == "withdrawal":
        told += f" instead of {offer.instead_of[:12]}, as the same runs less the rows of {offer.contributor}"
    return [
        f"{told}, under parameters version {statement['parameters']}; no money moves",
        *(
            f"{one.adapter} was trained by the constant {one.constant[:12]} of the round of {one.datanet} version"
            f" {one.version}"
            for one in offer.trainings
        ),
    ]


def _check_shape(statement: Statement) -> None:
    if format_of(statement) == OFFERS:
        if set(statement) != {"format", "earlier"} or not isinstance(statement["earlier"], list):
            raise _malformed("not the fields of the entry that asks for offers")
        lots = [Lot(**dict(zip(_LOT, line, strict=True))) for line in statement["earlier"]]
        if lots != sorted(set(lots)):
            raise _malformed("what was on sale is named once each, in order")
        for lot in lots:
            _check_lot(lot)
        return
    if format_of(statement) != OFFER or set(statement) != _FIELDS or statement["kind"] not in get_args(Kind):
        raise _malformed("not the fields of an offer")
    if type(statement["parameters"]) is not int or any(set(told) != _TRAINING for told in statement["trainings"]):
        raise _malformed("an offer names its parameters' version, and runs with their fields")
    offer = offer_in(statement)
    _check_lot(offer.lot)
    _check_kind(offer)
    for training in offer.trainings:
        _check_training(training)


def _check_lot(lot: Lot) -> None:
    check_name(lot.adapter, "adapter")
    check_account_id(lot.seller, "seller")
    if not _DIGEST.fullmatch(lot.adapter_digest) or type(lot.datanet_version) is not int:
        raise _malformed("an offer names an adapter's digest and its Datanet's version")
    if lot.datanet:
        check_name(lot.datanet, "datanet")


def _check_kind(offer: Offer) -> None:
    """What is trained comes of runs, on rows that it names unless it is a merge; a base of none; a withdrawal of those
    of what it replaces, if the log tells any."""
    told = bool(offer.trainings), bool(offer.instead_of), bool(offer.contributor)
    if told not in _MADE_OF[offer.kind] or not isinstance(offer.contributor, str):
        raise _malformed(f"not what makes an offer one of kind {offer.kind}")
    if offer.contributor:
        check_account_id(f"contributor:{offer.contributor}", "contributor")
    rows = {(one.datanet, one.version, one.purpose.row_root) for one in offer.trainings}
    own = offer.lot.datanet, offer.lot.datanet_version, offer.lot.row_root
    if own != ("", 0, "") and (offer.kind == "base" or (offer.kind == "trained" and own not in rows)):
        raise _malformed("it is of other rows than its runs were on")


def _check_training(training: Training) -> None:
    purpose = asdict(training.purpose).values()
    texts = (training.adapter, training.datanet, training.constant, *purpose)
    if not all(isinstance(text, str) for text in texts) or type(training.version) is not int:
        raise _malformed("a run names its Datanet, version, purpose and constant")
    check_account_id(training.seller, "seller")


def _why_none(known: Round | None, training: Training) -> str:
    """Why the training's constant isn't one that the round drew; empty where it is."""
    if known is None:
        return "no round of nonces was opened for that version"
    if not known.drawn:
        return f"the round isn't drawn: {_due(known.withheld)}"
    if known.purpose != training.purpose:
        return "the round was closed for other rows, another base model or another recipe"
    if public_constant(training.purpose.base_digest, training.datanet, training.version, known.drawn) != (
        training.constant
    ):
        return "its card names another constant than the round's nonces give"
    return ""


def _due(withheld: Collection[str]) -> str:
    return f"{', '.join(withheld)} have yet to reveal" if withheld else "contributions aren't closed"


def _unwitnessed(training: Training, num_required: int, reason: str) -> Conflict:
    """A round serves one version, base and recipe, once: what lacks one gets one, all else takes the next version."""
    return Conflict(
        f"{training.adapter} can't be offered: no witness stands for the constant it was trained by"
        f" ({training.datanet} version {training.version}): {reason}",
        code="constant_unwitnessed",
        param="adapter",
        fix=f"publish a version with a round of nonces and train on it: jobs/train.py --datanet {training.datanet}"
        f" --commit-nonces WITNESS (with --version {training.version} if that version has no round yet), then again"
        " without the option. A version whose round was closed sells that base and recipe alone: train by them, or"
        " publish the next one (a quickstart: in another folder). Or let a vote lower witnesses_required from"
        f" {num_required}: openledger govern propose",
    )


def _malformed(reason: str) -> InvalidInput:
    return InvalidInput(reason, code="malformed_statement", param="statement")


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
