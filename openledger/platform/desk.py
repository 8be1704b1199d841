"""The desk: what API and console ask of the economy beside answers, in JSON values.

Owns the translation from the economy's answers; knows neither Ray nor HTTP. `ask` calls the economy by method name:
`platform/live.py` gives one over the actor, tests one over an object.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from openledger.core.errors import Unavailable
from openledger.core.signed import contribution_id
from openledger.core.values import Contribution, ContributionReceipt, Verdict
from openledger.datanets.contribution import check_signature

_log = logging.getLogger(__name__)
_MISPLACED = {"wrong_schema", "missing_column", "wrong_type", "unknown_column", "wrong_language", "wrong_licence"}


class Ask(Protocol):
    def __call__(self, method: str, *arguments: Any) -> Awaitable[Any]: ...


class Desk:
    """Every refusal is an OpenLedgerError. Money is integers of nano-OPEN. The steps of `catch_up` are taken beside the
    economy's clock: they do what a crash between Datanets and log left undone. `restore` is the first of them, and is
    done before anybody is answered. `check_object(account, object)` raises NotFound for what `account` can't stake on
    because it isn't there; the economy knows neither adapters nor Datanets."""

    def __init__(
        self,
        ask: Ask,
        catch_up: Sequence[Callable[[], Awaitable[Any]]] = (),
        check_object: Callable[[str, str], Awaitable[None]] | None = None,
        restore: Callable[[], Awaitable[Any]] | None = None,
    ):
        self._ask = ask
        self._catch_up = catch_up
        self._check_object = check_object
        self._restore = restore

    async def make_ready(self, pause_s: float = 1.0) -> None:
        """Until it is done, nobody may be answered: waits for parts that are away, and raises what else `restore`
        does."""
        while self._restore is not None:
            try:
                await self._restore()
                return
            except Unavailable:
                _log.warning("nobody is answered yet: what the log says can't be read", exc_info=True)
                await asyncio.sleep(pause_s)

    async def keep_time(self, interval_s: float = 60.0) -> None:
        """Until cancelled: let what time brings (releases, passed proposals, cooled stake) happen by itself."""
        due: list[Callable[[], Awaitable[Any]]] = [partial(self._ask, "run_due")]
        due += [self._restore, *self._catch_up] if self._restore is not None else self._catch_up
        while True:
            for step in due:
                try:
                    await step()
                except Exception:  # noqa: BLE001 - a clock that stops at one failure would stop all that is due later
                    _log.exception("what is due has to wait")
            await asyncio.sleep(interval_s)

    async def stakes(self, account: str) -> dict[str, Any]:
        """What `account` has staked, what cools down, what was slashed, and its voting power."""
        return dict(await self._ask("stakes", account))

    async def stake(self, account: str, of: str, amount_nano: int, key: str) -> dict[str, Any]:
        """Raises NotFound (`unknown_adapter`, `unknown_datanet`). What is staked on already is known: a retry is
        answered also where the adapter is gone."""
        if self._check_object is not None and of not in (await self.stakes(account))["staked_nano"]:
            await self._check_object(account, of)
        return _statement(await self._ask("stake", account, of, amount_nano, key))

    async def unstake(self, account: str, of: str, amount_nano: int, key: str) -> dict[str, Any]:
        return _statement(await self._ask("unstake", account, of, amount_nano, key))

    async def delegate(self, account: str, delegate: str) -> None:
        await self._ask("delegate", account, delegate)

    async def parameters(self) -> dict[str, Any]:
        return dict(await self._ask("parameter_table"))

    async def simulate(self, changes: Mapping[str, Any], period: str) -> dict[str, Any]:
        return dict(await self._ask("simulate", changes, period))

    async def vesting(self) -> dict[str, Any]:
        return dict(await self._ask("vesting"))

    async def proposals(self) -> list[dict[str, Any]]:
        return list(await self._ask("proposals"))

    async def proposal(self, proposal: str) -> dict[str, Any]:
        return dict(await self._ask("proposal", proposal))

    async def propose(self, account: str, title: str, text: str, action: Mapping[str, Any], key: str) -> dict[str, Any]:
        return dict(await self._ask("propose", account, title, text, action, key))

    async def vote(self, account: str, proposal: str, support: str) -> int:
        """The power that was counted."""
        return int(await self._ask("vote", account, proposal, support))

    async def cancel(self, account: str, proposal: str) -> dict[str, Any]:
        await self._ask("cancel_proposal", account, proposal)
        return await self.proposal(proposal)

    async def withdraw(self, account: str, amount_nano: int, address: str, key: str) -> dict[str, Any]:
        told = dict(await self._ask("withdraw", account, amount_nano, address, key))
        return {name: told[name] for name in ("account", "amount_nano", "address")}

    async def claims(self, number: int) -> list[tuple[str, int]]:
        """(address, nano-OPEN) of one round."""
        return list(await self._ask("claims", number))

    async def claims_csv(self, number: int) -> str:
        return str(await self._ask("claims_csv", number))

    async def payouts_csv(self, account: str) -> str:
        return str(await self._ask("payouts_csv", account))

    async def deposited(
        self,
        contribution: Contribution,
        send: Callable[[], Awaitable[ContributionReceipt]],
        judged: Callable[[], Awaitable[ContributionReceipt | None]],
    ) -> ContributionReceipt:
        """What `send` answers, a contribution's deposit held meanwhile; kept where it was spam, given back where it
        can't be, held on where that is for reviewers to say. What the gate said counts for the contributor's
        reputation. Raises InvalidInput (`invalid_signature`) before all, and TooLarge (`quota_exceeded`) for more rows
        than that reputation allows in 24 hours.

        `judged` tells what the gate has said of the rows. Asked first: a contribution that it knows counts no more and
        has nothing held, also where it came before there were quotas or deposits. Asked again where `send` fails: by
        that the deposit is decided. Where the gate has said nothing and storage was away, the deposit stays for when
        the same is sent again.
        """
        check_signature(contribution)  # whose key it is, the Datanets say
        name, contributor = contribution_id(contribution), contribution.contributor_id
        if await judged() is None:
            await self._ask("admit", contributor, contribution.datanet, name, len(contribution.drafts))
            await self._ask("deposit", f"contributor:{contributor}", name)
        try:
            receipt = await send()
        except Exception as error:
            await self._decide_failed(name, judged, may_come=isinstance(error, Unavailable))
            raise
        await self._decide(receipt)
        return receipt

    async def _decide(self, receipt: ContributionReceipt) -> None:
        name, outcomes = receipt.contribution_id, outcomes_of(receipt.verdicts)
        if not may_become_spam(receipt.verdicts):
            await self._ask("judge", name, is_spam(receipt.verdicts))
        accepted = [verdict.row_id for verdict in receipt.verdicts if verdict.outcome == "accept"]
        await self._ask("draw_spot_checks", receipt.contributor_id, receipt.datanet, name, accepted)
        await self._ask("record_outcomes", receipt.contributor_id, receipt.datanet, outcomes, name)

    async def _decide_failed(
        self, name: str, judged: Callable[[], Awaitable[ContributionReceipt | None]], *, may_come: bool
    ) -> None:
        """Raises nothing: the caller has an error to tell."""
        try:
            receipt = await judged()
            if receipt is not None:
                await self._decide(receipt)
            elif not may_come:
                await self._ask("dismiss", name)
        except Exception:  # noqa: BLE001 - whatever it was, the deposit waits for the same contribution
            _log.exception("the deposit of %s stays held until the same is sent again", name)

    async def explain(self, transfer_id: str) -> list[str]:
        """A transfer's derivation, line by line. Raises NotFound (`transfer_not_found`)."""
        return list(await self._ask("explain", transfer_id))


def is_spam(verdicts: Sequence[Verdict]) -> bool:
    """Whether a contribution with these verdicts loses its deposit: more than half of its rows refused as noise, by the
    gate or by reviewers."""
    return 2 * outcomes_of(verdicts)["spam"] > len(verdicts)


def may_become_spam(verdicts: Sequence[Verdict], num_undecided: int | None = None) -> bool:
    """Whether it hangs on reviewers whether these lose their deposit: refused, the rows that they haven't decided (all
    that are in review, where it isn't said) would make them spam. The deposit waits for that."""
    if num_undecided is None:
        num_undecided = sum(1 for verdict in verdicts if verdict.outcome == "review")
    return not is_spam(verdicts) and 2 * (outcomes_of(verdicts)["spam"] + num_undecided) > len(verdicts)


def outcomes_of(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Verdicts as reputation counts them: what is neither accepted nor a copy, and was refused, is spam. What waits for
    a review counts nothing yet, and nothing what only belongs elsewhere: of another schema, language or licence."""
    rejected = [one for one in verdicts if one.outcome == "reject" and not _MISPLACED.issuperset(one.reasons)]
    copies = sum(1 for verdict in rejected if any(reason.endswith("_duplicate") for reason in verdict.reasons))
    accepted = sum(1 for verdict in verdicts if verdict.outcome == "accept")
    return {"accepted": accepted, "duplicate": copies, "spam": len(rejected) - copies}


def _statement(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller may know of a statement: not the key, nor its format."""
    return {name: value for name, value in told.items() if name not in ("format", "key", "number")}
