"""What people claim of the house, on a running cluster: places for sealed rows, verdicts and shares judged again, and
what is kept of what they asked.

The log is what is true. Datanets and economy are two actors, and a call may be lost between them: what the log says of
seals and appeals and the Datanets haven't done yet, is done by the next call that concerns them.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from openledger.core.appealing import Appeal, Decision
from openledger.core.errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    TooManyRequests,
)
from openledger.core.rekeying import KeyChange
from openledger.core.sealing import Seal, SealReceipt
from openledger.core.values import ContributionReceipt, RowDraft
from openledger.datanets.holders import HeldChange
from openledger.datanets.seals import UnloggedSeal
from openledger.ledger.appeals import LoggedAppeal, appeal_transfer_id
from openledger.ledger.contributor_keys import change_id
from openledger.ledger.disputes import Dispute, Recomputation, dispute_id
from openledger.ledger.signers import Signer
from openledger.platform.calls import answered
from openledger.platform.desk import is_spam

_logger = logging.getLogger(__name__)
_PAGE = 100  # of changes of keys: the economy answers others in between
_STALE_MS = 3_600_000  # of an appeal whose row came and whose deposit never did
_OPENING = ("public_key", "signed", "signature", "opened_ms")
_APPEALED = (
    "row_id", "datanet", "contributor_id", "contribution_id", "outcome", "reasons", "duplicate_of", "reason",
    "deposit_nano", "opened_ms",
)  # fmt: skip
_CLAIMED = (
    "adapter", "period", "contributor", "account", "reason", "claimed_nano", "paid_nano", "contested_nano", "pool_nano",
    "deposit_nano", "opened_ms",
)  # fmt: skip
_CHECKS_AT_ONCE = 100  # of which each comes with its text
_TEXT = ("prompt", "completion", "source", "extra")
_CLOSED = ("scorer", "public_key", "recomputed_nano", "num_answers", "answers_nano", "closed_ms")


class Claims:
    """The part of `LiveService` that answers for them. `datanets` and `economy` are actor handles."""

    def __init__(self, datanets: Any, economy: Any):
        self._datanets = datanets
        self._economy = economy

    async def seal(self, seal: Seal) -> SealReceipt:
        receipt: SealReceipt = await answered(self._datanets.seal.remote(seal))
        await self._log_seals(own=(seal.contributor_id, seal.digest))
        return receipt

    async def find_seal(self, datanet: str, contributor_id: str, digest: str) -> SealReceipt:
        found: SealReceipt = await answered(self._datanets.find_seal.remote(datanet, contributor_id, digest))
        return found

    async def change_keys(self, change: KeyChange) -> dict[str, Any]:
        """The replaced key signs nothing more from the first step on, and what it signed before is in the log ahead of
        the change; the new one signs from the last step on. The same again is told as it stands."""
        await self._settle_keys(change.contributor_id)
        if await answered(self._economy.key_change.remote(change.contributor_id, change.number)) != change:
            await self._hold_keys(change)
            await self._before_key_change()
            try:
                await answered(self._economy.change_keys.remote(change))
            except (Conflict, Forbidden, InvalidInput):
                await answered(self._datanets.drop_keys.remote(change))
                raise
        await answered(self._datanets.adopt_keys.remote(change))
        return await self.contributor_keys(change.contributor_id)

    async def _hold_keys(self, change: KeyChange) -> None:
        try:
            await answered(self._datanets.hold_keys.remote(change))
        except TooManyRequests:
            decides = await answered(self._economy.is_signers_key.remote(change.replaces))
            if not decides:
                raise
            await answered(self._datanets.hold_keys.remote(change, decides))

    async def contributor_keys(self, contributor: str) -> dict[str, Any]:
        changes: list[KeyChange] = await answered(self._economy.contributor_keys.remote(contributor))
        return {"contributor_id": contributor, **keys_entry(changes)}

    async def key_holder(self, public_key: str) -> str:
        return str(await answered(self._economy.key_holder.remote(public_key)))

    async def _before_key_change(self) -> None:
        """What the key signed, and was accepted, goes into the log first."""
        await self._log_seals()

    async def _restore_keys(self) -> None:
        """Where registry or log were restored from a backup: let the Datanets know what the log has of contributors'
        keys, and send it again what it lacks. Before that is done nobody is answered: a replaced key would sign.

        The Datanets keep up to which change they were told, so that it costs little to ask again; a log that has
        another change in that place, or none, was restored, and is read anew."""
        told: tuple[int, KeyChange] | None = await answered(self._datanets.keys_told.remote())
        if told is not None and await self._logged_behind(told[0] - 1, 1) != [told]:
            await answered(self._datanets.forget_keys_told.remote())
            told = None
        waiting: list[KeyChange] = await answered(self._datanets.untold_keys.remote())
        seq = -1 if told is None else told[0]
        while page := await self._logged_behind(seq, _PAGE):
            await answered(self._datanets.restore_keys.remote(page))
            seq = page[-1][0]
        if waiting:
            await self._log_lost({(one.contributor_id, one.number) for one in waiting})

    async def _log_lost(self, waiting: set[tuple[str, int]]) -> None:
        """Of those changes that the Datanets had adopted, the ones that the log, read since to its end, hasn't got."""
        untold: list[KeyChange] = await answered(self._datanets.untold_keys.remote())
        for change in untold:
            own = change.contributor_id, change.number
            if own in waiting and await answered(self._economy.key_change.remote(*own)) is None:
                await self._log_again(change)

    async def _logged_behind(self, seq: int, limit: int) -> list[tuple[int, KeyChange]]:
        found: list[tuple[int, KeyChange]] = await answered(self._economy.key_changes.remote(seq, limit))
        return found

    async def _log_again(self, change: KeyChange) -> None:
        """One that the log had, and has no more; where it refuses it now, the Datanets forget it."""
        try:
            await answered(self._economy.change_keys.remote(change))
        except (Conflict, Forbidden, InvalidInput):
            _logger.exception("the log refuses the change of keys %s of %s", change.number, change.contributor_id)
            await answered(self._datanets.unlog_keys.remote([change]))
            await answered(self._datanets.drop_keys.remote(change))

    async def _settle_keys(self, contributor: str | None = None) -> None:
        """Do what the log says of changes that were cut off on their way there (of one contributor, or everybody's);
        may be repeated."""
        held: list[HeldChange] = await answered(self._datanets.held_keys.remote())
        for one in held:
            if contributor not in (None, one.change.contributor_id):
                continue
            own = one.change.contributor_id, one.change.number
            logged: KeyChange | None = await answered(self._economy.key_change.remote(*own))
            if logged is not None:
                await answered(self._datanets.adopt_keys.remote(logged))
            elif one.age_ms > _STALE_MS:
                await answered(self._datanets.drop_keys.remote(one.change, _STALE_MS))

    async def appeal(self, appeal: Appeal) -> dict[str, Any]:
        known: LoggedAppeal | None = await answered(self._economy.appeal.remote(appeal.row_id))
        if known is None or known.claim["signature"] != appeal.signature:
            judged = await answered(self._datanets.hold_appeal.remote(appeal))
            known = await self._open_appeal(appeal, judged)
        return appeal_entry(known)

    async def appeals(self, datanet: str) -> list[dict[str, Any]]:
        await self._close_appeals()
        row_ids = await answered(self._datanets.appeals.remote(datanet))
        found = await asyncio.gather(*(answered(self._economy.appeal.remote(row_id)) for row_id in row_ids))
        return [appeal_entry(one) for one in found if one is not None]

    async def find_appeal(self, datanet: str, row_id: str) -> dict[str, Any]:
        await self._close_appeals()
        found: LoggedAppeal | None = await answered(self._economy.appeal.remote(row_id))
        if found is None or found.claim["datanet"] != datanet:
            raise NotFound(f"nobody appealed against the verdict on {row_id}", code="appeal_not_found", param="row_id")
        return appeal_entry(found)

    async def appealed_row(self, account: str, datanet: str, row_id: str) -> dict[str, Any]:
        await self.find_appeal(datanet, row_id)
        await self._check_reader(account, datanet)
        return {"row_id": row_id, **asdict(await answered(self._datanets.appealed_row.remote(row_id)))}

    async def decide(self, decision: Decision) -> dict[str, Any]:
        """What the log can refuse comes first: only a reviewer of the Datanet, by his own key, may learn from the
        Datanets that a row which nobody is told of is his."""
        await answered(self._economy.check_decision.remote(decision))
        await answered(self._datanets.check_decider.remote(decision.row_id, decision.account, decision.public_key))
        decided: LoggedAppeal = await answered(self._economy.decide_appeal.remote(decision))
        await self._close_appeal(decision.row_id, decided)
        return appeal_entry(decided)

    async def spot_checks(self, account: str, datanet: str) -> list[dict[str, Any]]:
        await self._check_reader(account, datanet)
        due = list(await answered(self._economy.spot_checks.remote(datanet)))[:_CHECKS_AT_ONCE]
        texts: dict[str, RowDraft] = await answered(
            self._datanets.texts.remote(datanet, [one["row_id"] for one in due])
        )
        return [{**one, **_text(texts.get(one["row_id"]))} for one in due]

    async def spot_check(self, account: str, datanet: str, row_id: str, finding: str) -> dict[str, Any]:
        await self._check_reader(account, datanet)
        return dict(await answered(self._economy.spot_check.remote(account, datanet, row_id, finding)))

    async def seed_trust(self, account: str, datanet: str, contributor: str, trusted: bool) -> dict[str, Any]:
        await self._check_owner(account, datanet)
        await answered(self._economy.seed_trust.remote(datanet, contributor, trusted))
        return await self._standing(datanet, contributor)

    async def vouch(self, account: str, datanet: str, contributor: str, vouches: bool) -> dict[str, Any]:
        kind, _, voucher = account.partition(":")
        if kind != "contributor":
            raise Forbidden(
                f"{account} contributes to no Datanet",
                code="not_a_contributor",
                param="Authorization",
                fix="send the API key of the account contributor:ID",
            )
        await answered(self._datanets.datanet.remote(datanet))
        await answered(self._economy.vouch.remote(datanet, voucher, contributor, vouches))
        return await self._standing(datanet, contributor)

    async def _standing(self, datanet: str, contributor: str) -> dict[str, Any]:
        found = await answered(self._economy.reputation.remote(contributor, datanet))
        return {"datanet": datanet, "contributor": contributor, **found}

    async def add_reviewer(self, account: str, datanet: str, reviewer: Signer, signature: str) -> dict[str, Any]:
        await self._check_owner(account, datanet)
        transfer_id = await answered(self._economy.add_signer.remote(reviewer, signature))
        return {**asdict(reviewer), "transfer_id": transfer_id}

    async def end_reviewer(self, account: str, datanet: str, reviewer: Signer) -> dict[str, Any]:
        await self._check_owner(account, datanet)
        transfer_id = await answered(self._economy.end_signer.remote(reviewer))
        return {**asdict(reviewer), "transfer_id": transfer_id}

    async def open_dispute(
        self, account: str, adapter: str, period: str, contributor: str, claimed_nano: int, reason: str
    ) -> dict[str, Any]:
        given = account, adapter, period, contributor, claimed_nano, reason
        return dispute_entry(await answered(self._economy.dispute.remote(*given)))

    async def disputes(self, adapter: str, period: str) -> list[dict[str, Any]]:
        await answered(self._economy.expire_disputes.remote())
        return [dispute_entry(one) for one in await answered(self._economy.disputes.remote(adapter, period))]

    async def find_dispute(self, name: str) -> dict[str, Any]:
        await answered(self._economy.expire_disputes.remote())
        return dispute_entry(await answered(self._economy.find_dispute.remote(name)))

    async def resolve_dispute(self, name: str, found: Recomputation) -> dict[str, Any]:
        claim = (await answered(self._economy.find_dispute.remote(name))).claim
        if (claim["adapter"], claim["period"]) != (found.adapter, found.period):
            raise InvalidInput("the scores are of another pool", code="invalid_scores", param="period")
        return dispute_entry(await answered(self._economy.resolve_dispute.remote(claim["contributor"], found)))

    async def retention(self, account: str) -> dict[str, Any]:
        return asdict(await answered(self._economy.retention.remote(account)))

    async def set_retention(self, account: str, keep: bool) -> dict[str, Any]:
        await answered(self._economy.set_retention.remote(account, keep))
        return await self.retention(account)

    async def forget_content(self, account: str) -> dict[str, Any]:
        num_erased = await answered(self._economy.forget_content.remote(account))
        return {**await self.retention(account), "num_erased": num_erased}

    async def check_request(self, caller: str, key: str, digest: str) -> None:
        await answered(self._economy.check_request.remote(caller, key, digest))

    async def _log_seals(self, own: tuple[str, str] | None = None) -> None:
        """Put what the log lacks there, in its order; may be repeated, also by two at a time. What the log refuses
        stops nobody but whoever sent it (`own`: contributor and digest)."""
        waiting: list[UnloggedSeal] = await answered(self._datanets.unlogged_seals.remote())
        for one in waiting:
            try:
                await answered(self._log(one))
            except (Conflict, InvalidInput):
                if own == (one.contributor_id, one.digest):
                    raise
                _logger.exception("the log refuses the seal %s of %s", one.digest, one.contributor_id)
                continue
            opened = one.signed is not None
            await answered(self._datanets.mark_seal_logged.remote(one.contributor_id, one.digest, opened=opened))

    def _log(self, one: UnloggedSeal) -> Any:
        own = one.datanet, one.contributor_id, one.digest
        if one.signed is None:
            return self._economy.log_seal.remote(*own, one.expires_ms)
        told = {name: value for name, value in asdict(one).items() if name in _OPENING}
        return self._economy.log_opening.remote(*own, **told)

    async def _open_appeal(self, appeal: Appeal, judged: Any) -> LoggedAppeal:
        try:
            opened: LoggedAppeal = await answered(self._economy.open_appeal.remote(appeal, judged))
        except (Conflict, Forbidden, InsufficientFunds, InvalidInput):
            if await answered(self._economy.appeal.remote(appeal.row_id)) is None:
                await answered(self._datanets.drop_appeal.remote(appeal.row_id))
            raise
        return opened

    async def _close_appeals(self) -> None:
        """Do what the log says of rows that are kept for an appeal; may be repeated. One whose Datanet can't take it
        waits, and keeps no other from being closed."""
        held: dict[str, int] = await answered(self._datanets.held_appeals.remote())
        for row_id, age_ms in held.items():
            told: LoggedAppeal | None = await answered(self._economy.appeal.remote(row_id))
            if told is None and age_ms > _STALE_MS:
                await answered(self._datanets.drop_appeal.remote(row_id))
            elif told is not None and told.state != "open":
                try:
                    await self._close_appeal(row_id, told)
                except Corrupt:
                    _logger.exception("the appeal about the row %s waits for its Datanet", row_id)

    async def _close_appeal(self, row_id: str, appeal: LoggedAppeal) -> None:
        """In this order: as long as the row is kept, what is left undone here is done by the next call."""
        if appeal.state == "overturned":
            await self._acquit(row_id, appeal)
        await answered(self._datanets.close_appeal.remote(row_id, appeal.state))

    async def _acquit(self, row_id: str, appeal: LoggedAppeal) -> None:
        """The row counts as accepted for its contributor's reputation, and its contribution's deposit comes back where
        with it the contribution is no spam."""
        claim = appeal.claim
        receipt: ContributionReceipt | None = await answered(self._datanets.standing.remote(claim["contribution_id"]))
        if receipt is None:
            return
        own = claim["contributor_id"], claim["datanet"]
        await answered(self._economy.record_outcomes.remote(*own, {"accepted": 1}, f"appeal:{row_id}"))
        others = [one for one in receipt.verdicts if one.row_id != row_id]
        (overturned,) = (one for one in receipt.verdicts if one.row_id == row_id)
        if not is_spam([*others, replace(overturned, outcome="accept", reasons=())]):
            await answered(self._economy.acquit.remote(claim["contribution_id"], row_id))

    async def _check_owner(self, account: str, datanet: str) -> None:
        if (await answered(self._datanets.datanet.remote(datanet))).owner != account:
            raise Forbidden(
                f"{account} isn't the owner of {datanet}",
                code="not_the_owner",
                param="Authorization",
                fix="send the API key of the Datanet's owner",
            )

    async def _check_reader(self, account: str, datanet: str) -> None:
        """Raises Forbidden unless `account` owns the Datanet, or reviews it."""
        signers: list[Signer] = await answered(self._economy.signers_of.remote(account))
        if not any((signer.role, signer.datanet) == ("reviewer", datanet) for signer in signers):
            await self._check_owner(account, datanet)


def _text(draft: RowDraft | None) -> dict[str, str | None]:
    """Nulls where the row was taken back meanwhile."""
    return dict.fromkeys(_TEXT) if draft is None else {name: getattr(draft, name) for name in _TEXT}


def keys_entry(changes: Sequence[KeyChange]) -> dict[str, Any]:
    """A contributor's keys now, and each change with the transfer whose proof shows it. Nulls: never changed."""
    told = [
        {
            "number": one.number,
            "public_key": one.public_key,
            "recovery_key": one.recovery_key or None,
            "replaces": one.replaces,
            "by": one.by,
            "transfer_id": change_id(one.contributor_id, one.number),
        }
        for one in changes
    ]
    now = told[-1] if told else {"public_key": None, "recovery_key": None}
    return {
        "public_key": now["public_key"],
        "recovery_key": now["recovery_key"],
        "num_changes": len(told),
        "changes": told,
    }


def appeal_entry(found: LoggedAppeal) -> dict[str, Any]:
    closing = found.closing or {}
    decision = {name: closing.get(name) for name in ("account", "public_key", "note", "closed_ms")}
    row_id = found.claim["row_id"]
    return {
        **{name: found.claim[name] for name in _APPEALED},
        "state": found.state,
        "deadline_ms": found.deadline_ms,
        "decision": decision if found.closing else None,
        "transfer_id": appeal_transfer_id(row_id, "open"),
        "closing_id": appeal_transfer_id(row_id, "close") if found.closing else None,
    }


def dispute_entry(found: Dispute) -> dict[str, Any]:
    claim, closing = found.claim, found.closing or {}
    return {
        "dispute_id": dispute_id(claim["adapter"], claim["period"], claim["contributor"]),
        **{name: claim[name] for name in _CLAIMED},
        "state": found.state,
        "deadline_ms": found.deadline_ms,
        "award_nano": found.award_nano,
        "verdict": {name: closing.get(name) for name in _CLOSED} if found.closing else None,
    }
