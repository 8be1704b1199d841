"""The book of offers: what is for sale in the log, and that nothing else is sold once the log asks for it.

Writes the statements of `ledger.offers` through the ledger's port. Nothing is kept but what was read of the log.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from openledger.core.errors import Conflict
from openledger.core.values import AdapterTerms
from openledger.economy.contributor_keys import History
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.economy.witnesses import WitnessBook
from openledger.ledger import offers
from openledger.ledger.offers import OFFERS_ACCOUNT, OFFERS_BEGUN, Lot, Offer, Offers, lot_of, offer_id
from openledger.ledger.seats import seat_accounts
from openledger.ledger.transfers import CREATED, EXISTS


class OfferBook:
    """Over one ledger, into which nobody else writes offers."""

    def __init__(self, ledger: LedgerPort, register: RegisterBook, witnesses: WitnessBook):
        self._ledger = ledger
        self._register = register
        self._witnesses = witnesses
        self._history = History(ledger, OFFERS_ACCOUNT)
        self._read: tuple[int, Offers] = -1, Offers()  # up to which entry, and what it says
        self.refresh()

    def refresh(self) -> Offers:
        """Everything that is offered in the log; what was read once isn't read again."""
        last, known = self._read
        for seq in self._history.after(last):
            known.apply(self._ledger.batch(seq).statement or {})
            self._read = seq, known
        return known

    def begin(self, earlier: Collection[Lot]) -> None:
        """Ask for an offer of whatever is sold from now on but `earlier`, which is on sale; once."""
        if not self.refresh().begun:
            self._write(offers.begin_statement(earlier))

    def offer(self, offer: Offer) -> str:
        """Put an adapter on sale; the id of the transfer whose proof shows it. The same again changes nothing. A
        withdrawal's runs are those that the log tells of what it replaces.

        Raises Conflict (`constant_unwitnessed`), (`offers_not_begun`) before `begin`, (`offer_without_adapter`) for a
        withdrawal of what the seller hadn't on sale.
        """
        known = self.refresh()
        if offer.lot in known.standing:
            name = offer_id(offer.lot)
            return name if self._ledger.find(name) is not None else OFFERS_BEGUN
        if offer.kind == "withdrawal":
            offer = replace(offer, trainings=known.standing.get(offer.replaced, ()))
        statement = offers.offer_statement(offer, self._register.parameters().version)
        offers.check_shape(statement)
        known.check(statement, self._witnesses.round_of, self._witnesses.keys_of, self._register.refresh().parameters)
        return self._write(statement)

    def missing(self, lots: Sequence[Lot]) -> list[Lot]:
        """Those that aren't offered, where the log asks for offers."""
        known = self.refresh()
        return [lot for lot in lots if known.begun and lot not in known.standing]

    def check_sale(self, terms: AdapterTerms) -> None:
        """Raises Conflict (`adapter_not_offered`) where the log asks for offers and has none of this."""
        known = self._read[1]
        if known.begun and lot_of(terms) not in known.standing and self.missing([lot_of(terms)]):
            raise Conflict(
                f"{terms.adapter} ({terms.adapter_digest[:12]}) isn't offered by {terms.owner_account}: the log doesn't"
                " say who stands for it",
                code="adapter_not_offered",
                param="model",
                fix="let its seller offer it again (POST /v1/adapters), or the operator start the gateway again, which"
                " offers what the registry has on sale",
            )

    def _write(self, statement: dict[str, Any]) -> str:
        transfers = offers.transfers_of(statement)
        opened = self._ledger.create_accounts(seat_accounts(OFFERS_ACCOUNT))
        for result in [*opened, *self._ledger.commit(transfers, statement)]:
            if result not in (CREATED, EXISTS, "linked_transfer_failed"):
                raise Conflict(f"the ledger refused the offer: {result}", code=result, param="adapter")
        self.refresh()
        return transfers[0].transfer_id
