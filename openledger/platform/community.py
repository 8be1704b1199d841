"""What a Datanet's people do beside contributing, on a running cluster: they review rows, say what answers were worth,
and see who does how much.

An answer is its customer's: feedback on it needs the API key of the account that paid for it, and rows made of it need
that account's consent, for they hold what was asked. Who signs them is whom they are credited to.
"""

import asyncio
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from openledger.core.errors import Conflict, InvalidInput
from openledger.core.rating import feedback_source, rater
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets.feedback import RATING, Feedback
from openledger.datanets.leaderboard import Activity, LeaderboardPage
from openledger.datanets.reviews import ReviewerRecord, ReviewOutcome
from openledger.economy import Payout
from openledger.platform.calls import answered
from openledger.platform.claims import Claims
from openledger.platform.desk import is_spam, may_become_spam
from openledger.platform.service import MOST_SHOWN

_COUNTS = tuple(name for name in ReviewerRecord.__dataclass_fields__ if name != "reviewer")


class Community(Claims):
    """The part of `LiveService` that answers for them."""

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        raise NotImplementedError

    def adapters_of(self, datanet: str) -> list[str]:
        """Names of the adapters that are sold and were trained on the Datanet."""
        raise NotImplementedError

    async def review_queue(self, account: str, name: str, limit: int) -> list[dict[str, Any]]:
        await self._check_reader(account, name)
        found = await answered(self._datanets.review_queue.remote(name, account, limit))
        return [{"row_id": item, **asdict(draft)} for item, draft in found]

    async def review(self, account: str, name: str, row_id: str, *, accept: bool) -> dict[str, Any]:
        await self._check_reader(account, name)
        await answered(self._datanets.review.remote(name, row_id, account, accept=accept))
        await self._tell_reviews()
        await self._decide_deposits()
        return {"datanet": name, "row_id": row_id, "reviewer": account, "accept": accept}

    async def commit_review(self, account: str, name: str, row_id: str, digest: str) -> dict[str, Any]:
        await self._check_reader(account, name)
        await answered(self._datanets.commit_review.remote(name, row_id, account, digest))
        return {"datanet": name, "row_id": row_id, "reviewer": account, "digest": digest}

    async def reveal_review(self, account: str, name: str, row_id: str, nonce: str, *, accept: bool) -> dict[str, Any]:
        await self._check_reader(account, name)
        await answered(self._datanets.reveal_review.remote(name, row_id, account, nonce, accept=accept))
        await self._after_panels()
        return {"datanet": name, "row_id": row_id, "reviewer": account, "accept": accept}

    async def panels(self, account: str, name: str) -> dict[str, Any]:
        await self._check_reader(account, name)
        await answered(self._datanets.decide_panels.remote())
        seats = await answered(self._datanets.panel_seats.remote(name, account))
        return {"datanet": name, "reviewer": account, "seats": [asdict(seat) for seat in seats]}

    async def _after_panels(self) -> None:
        """What panels whose time is up come to; may be repeated."""
        await answered(self._datanets.decide_panels.remote())
        await self._tell_reviews()
        await self._decide_deposits()

    async def _tell_reviews(self) -> None:
        """What reviewers decided counts for the contributors' reputation, as what the gate decides does; may be
        repeated, also by two at a time."""
        waiting: list[ReviewOutcome] = await answered(self._datanets.untold_reviews.remote())
        for one in waiting:
            own, event = (one.contributor_id, one.datanet), f"review:{one.row_id}"
            if one.outcome == "accept":
                await answered(self._economy.draw_spot_checks.remote(*own, event, [one.row_id]))
            outcomes = {"accepted" if one.outcome == "accept" else "spam": 1}
            await answered(self._economy.record_outcomes.remote(*own, outcomes, event))
            await answered(self._datanets.mark_review_told.remote(one.row_id))

    async def _decide_deposits(self) -> None:
        """Of contributions whose deposit waited for reviewers, or for a process that ended; may be repeated."""
        for name in await answered(self._economy.undecided_deposits.remote()):
            receipt: ContributionReceipt | None = await answered(self._datanets.standing.remote(name))
            if receipt is None:
                continue
            num_undecided = await answered(self._datanets.num_undecided.remote(name))
            if not may_become_spam(receipt.verdicts, num_undecided):
                await answered(self._economy.judge.remote(name, is_spam(receipt.verdicts)))

    async def add_known_answer(self, account: str, name: str, draft: RowDraft, *, accept: bool) -> dict[str, Any]:
        item = await answered(self._datanets.add_known_answer.remote(name, draft, account, accept=accept))
        return {"datanet": name, "row_id": item, "accept": accept}

    async def reviewers(self, account: str, name: str) -> list[dict[str, Any]]:
        """All for the owner; a reviewer isn't told how he did, or he would learn which items were known."""
        await self._check_owner(account, name)
        withheld: dict[str, int] = await answered(self._datanets.withheld_reviews.remote(name))
        records: list[ReviewerRecord] = list(await answered(self._datanets.reviewers.remote(name)))
        silent = sorted(withheld.keys() - {one.reviewer for one in records})
        records += [ReviewerRecord(reviewer=one, **dict.fromkeys(_COUNTS, 0)) for one in silent]
        return [{**_reviewer(one), "num_withheld": withheld.get(one.reviewer, 0)} for one in records]

    async def give_feedback(
        self, account: str, answer_id: str, kind: str, contribution: Contribution, *, salt: str, consent: bool
    ) -> ContributionReceipt:
        source = feedback_source(answer_id, kind, salt)
        datanet = await self._datanet_of(account, answer_id)
        _check_feedback(contribution, datanet, source, consent=consent)
        receipt = await self.contribute(contribution)
        given = Feedback(
            answer_id=answer_id,
            contributor_id=receipt.contributor_id,
            kind=kind,
            datanet=datanet,
            public_key=contribution.public_key,
            signature=contribution.signature,
            subject=receipt.contribution_id,
        )
        await answered(self._datanets.add_feedback.remote(given))
        return receipt

    async def rate(self, account: str, answer_id: str, rating: int, public_key: str, signature: str) -> dict[str, Any]:
        held = await self.key_holder(public_key)
        contributor = rater(public_key, signature, answer_id, rating, lambda _: held)
        given = Feedback(
            answer_id=answer_id,
            contributor_id=contributor,
            kind=RATING,
            datanet=await self._datanet_of(account, answer_id),
            public_key=public_key,
            signature=signature,
            rating=rating,
        )
        await answered(self._datanets.add_feedback.remote(given))
        return {"answer_id": answer_id, "datanet": given.datanet, "contributor_id": contributor, "rating": rating}

    async def leaderboard(self, name: str, *, after: str = "", limit: int = MOST_SHOWN) -> dict[str, Any]:
        asked = self._datanets.leaderboard_page.remote(name, after, min(limit, MOST_SHOWN))
        page: LeaderboardPage = await answered(asked)
        adapters = set(self.adapters_of(name))
        people = await asyncio.gather(*(self._with_earnings(one, adapters) for one in page.contributors))
        return {
            "datanet": name,
            "contributors": [{"rank": page.first + place, **one} for place, one in enumerate(people, start=1)],
            "num_contributors": page.num_contributors,
            "has_more": page.first + len(people) < page.num_contributors,
            "rows_a_week": page.rows_a_week,
            "duplicates": page.duplicates,
            "cohorts": [asdict(cohort) for cohort in page.cohorts],
            "reviewers": [{"reviewer": one, "num_reviews": number} for one, number in page.reviewers.items()],
        }

    async def _with_earnings(self, one: Activity, adapters: Collection[str]) -> dict[str, Any]:
        found: list[Payout] = await answered(self._economy.payouts.remote(f"contributor:{one.contributor_id}"))
        paid = [each for each in found if each.reference.rpartition(":")[0] in adapters]
        first_ms = min((each.time_ms for each in paid), default=None)
        return {
            **asdict(one),
            "earned_nano": sum(each.amount_nano for each in paid),
            "first_payout_ms": None if first_ms is None else max(0, first_ms - one.first_ms),
        }

    async def _datanet_of(self, account: str, answer_id: str) -> str:
        """Of the adapter that gave the answer, which `account` paid for."""
        usage = await answered(self._economy.bought.remote(answer_id, account))
        if not usage["datanet"]:
            raise Conflict(
                f"{answer_id} was given by an adapter without a Datanet of its own",
                code="no_datanet",
                param="answer_id",
                fix="contribute to a Datanet by its name",
            )
        return str(usage["datanet"])


def _check_feedback(contribution: Contribution, datanet: str, source: str, *, consent: bool) -> None:
    if not consent:
        raise InvalidInput(
            "rows made of an answer hold what was asked, and need the customer's consent",
            code="consent_missing",
            param="consent",
            fix="send consent: true where the rows may be kept and trained on, or rate the answer instead",
        )
    if contribution.datanet != datanet:
        raise InvalidInput(
            f"the answer came from {datanet!r}, not {contribution.datanet!r}",
            code="wrong_datanet",
            param="datanet",
            fix=f"sign the rows for {datanet}",
        )
    for ordinal, draft in enumerate(contribution.drafts):
        if draft.source != source:
            raise InvalidInput(
                f"row {ordinal} doesn't say which answer it is of",
                code="wrong_source",
                param=f"drafts[{ordinal}].source",
                fix=f"sign it with the source {source}",
            )


def _reviewer(one: ReviewerRecord) -> dict[str, Any]:
    return {**asdict(one), "is_heard": one.is_heard}
