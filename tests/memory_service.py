"""A Service in memory, and a finished run's report: what API, console, client and CLI are tested against."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from openledger.core.errors import InsufficientFunds, InvalidInput, NotFound, Unauthenticated, Unavailable
from openledger.core.money import split
from openledger.core.sealing import Seal, SealReceipt, SealState, check_seal
from openledger.core.signing import contributor_id
from openledger.core.values import Contribution, ContributionReceipt, SamplingParameters, Verdict, Withdrawal
from openledger.platform.desk import Desk
from openledger.platform.service import (
    AdapterReceipt,
    AnswerEvent,
    Embedded,
    ModelEntry,
    NewAdapter,
    Receipt,
    TokenScore,
)  # fmt: skip

API_KEY = "olk_test_alice"
POOR_KEY = "olk_test_poor"
CHECKPOINT = (
    "openledger.test/ledger\n42\nq83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=\n\n— openledger.test/ledger AAAA\n"
)
SIGNED = {"format": "openledger.receipt/1", "seq": 5}
RECEIPT = b'{"format":"openledger.receipt/1","seq":5}\n'
PROOF = b'{"format":"openledger.proof/1","transfer":{"amount_nano":5}}\n'


@dataclass
class MemoryService:
    """`words` is what every answer says; `pause_s` waits before each; `failure` is raised after the second."""

    words: tuple[str, ...] = ("Join ", "one or more ", "path segments.")
    pause_s: float = 0.0
    failure: Exception | None = None
    adapter_receipts: tuple[AdapterReceipt, ...] = ()
    told: dict[str, Any] = field(default_factory=lambda: sample_report())
    asked: list[dict[str, Any]] = field(default_factory=list)
    contributed: list[Contribution] = field(default_factory=list)
    receipts: dict[str, ContributionReceipt] = field(default_factory=dict)
    withdrawn: list[Withdrawal] = field(default_factory=list)
    removed: list[tuple[str, str, tuple[str, ...], str]] = field(default_factory=list)
    marked: list[tuple[str, str]] = field(default_factory=list)
    sealed: dict[tuple[str, str], Seal] = field(default_factory=dict)
    seal_state: SealState = "waiting"
    adapters: dict[str, ModelEntry] = field(
        default_factory=lambda: {name: _model(name, number) for number, name in enumerate(("os-docs", "numpy-docs"), 1)}
    )
    added: list[tuple[str, NewAdapter]] = field(default_factory=list)
    desk: Desk = field(default_factory=lambda: Desk(_closed))
    num_closed: int = 0
    num_finished: int = 0
    is_closed: bool = False

    async def close(self) -> None:
        self.is_closed = True

    async def authenticate(self, api_key: str) -> str:
        accounts = {API_KEY: "user:alice", POOR_KEY: "user:poor"}
        if api_key not in accounts:
            raise Unauthenticated("this API key is not known", code="invalid_api_key", param="Authorization")
        return accounts[api_key]

    async def models(self, *, account: str = "", after: str = "", limit: int = 1000) -> list[ModelEntry]:
        names = list(self.adapters)
        begin = names.index(after) + 1 if after else 0
        return list(self.adapters.values())[begin : begin + limit]

    async def model(self, account: str, model_id: str) -> ModelEntry:
        if model_id not in self.adapters:
            raise NotFound(f"there is no model {model_id!r}", code="unknown_model", param="model")
        return self.adapters[model_id]

    async def add_adapter(self, account: str, adapter: NewAdapter) -> ModelEntry:
        self.added.append((account, adapter))
        self.adapters[adapter.name] = _model(adapter.name, 1)
        return self.adapters[adapter.name]

    async def remove_adapter(self, account: str, model_id: str) -> None:
        await self.model(account, model_id)
        del self.adapters[model_id]

    async def chat(
        self,
        *,
        account: str,
        model: str,
        messages: Sequence[dict[str, str]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        _refuse(account, model, messages)
        self.asked.append(
            {
                "account": account,
                "messages": list(messages),
                "sampling": sampling,
                "key": idempotency_key,
                "key_digest": key_digest,
                "adapters": list(adapters),
            }
        )
        async with aclosing(self._say(range(sampling.num_answers), sampling, "")) as events:
            async for event in events:
                yield event

    async def complete(
        self,
        *,
        account: str,
        model: str,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        echo: bool = False,
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        _refuse(account, model, [{"content": str(prompt)} for prompt in prompts])
        self.asked.append({"account": account, "prompts": prompts, "sampling": sampling, "key": idempotency_key})
        indexes = range(len(prompts) * sampling.num_answers)
        async with aclosing(self._say(indexes, sampling, "Say: " if echo else "")) as events:
            async for event in events:
                yield event

    async def embed(
        self,
        *,
        account: str,
        model: str,
        inputs: Sequence[str | Sequence[int]],
        idempotency_key: str,
        key_digest: str = "",
    ) -> Embedded:
        """Two numbers for each input."""
        _refuse(account, model, [{"content": str(each)} for each in inputs])
        await asyncio.sleep(self.pause_s)
        receipt = Receipt(
            answer_id="ans_e", prompt_tokens=len(inputs), completion_tokens=0, fee_nano=1, parts={"user:owner": 1}
        )
        return Embedded(vectors_KH=np.full((len(inputs), 2), 0.5, np.float32), receipt=receipt)

    async def _say(
        self, indexes: Sequence[int], sampling: SamplingParameters, prompt: str
    ) -> AsyncGenerator[AnswerEvent]:
        """All answers say the same, word by word and by turns."""
        scored, echoed = sampling.logprobs is not None, (TokenScore(token="Say: ", logprob=None),)
        try:
            for position, word in enumerate(self.words):
                await asyncio.sleep(self.pause_s)
                if self.failure is not None and position == 2:
                    raise self.failure
                score = TokenScore(token=word, logprob=-0.5, top=((word, -0.5), ("other", -1.5)))
                for index in indexes:
                    first = prompt and position == 0
                    yield AnswerEvent(
                        text=word, token_count=2, index=index, scores=(score,) if scored else (),
                        prompt_text=prompt if first else "", prompt_scores=echoed if first and scored else (),
                    )  # fmt: skip
            for index in indexes:
                receipt = replace(_receipt(len(self.words)), adapters=self.adapter_receipts)
                yield AnswerEvent(text="", token_count=0, finish_reason="stop", receipt=receipt, index=index)
            self.num_finished += 1
        finally:
            self.num_closed += 1

    async def balance(self, account: str) -> dict[str, Any]:
        return {"account": account, "available_nano": 2_500_000_000, "held_nano": 1000}

    async def datanets(self) -> list[dict[str, Any]]:
        return [dict(datanet) for datanet in self.told.get("datanets", [])]

    async def datanet(self, name: str) -> dict[str, Any]:
        for datanet in self.told.get("datanets", []):
            if datanet["name"] == name:
                return dict(datanet)
        raise NotFound(f"there is no Datanet {name!r}", code="unknown_datanet", param="datanet")

    async def terms(self, name: str) -> dict[str, Any]:
        return {"max_rows_a_day": 0, "max_rows_an_hour": 0}

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        await self.datanet(contribution.datanet)
        self.contributed.append(contribution)
        verdicts = tuple(
            Verdict(row_id=f"row_{n}", ordinal=n, outcome="accept" if n else "reject", reasons=() if n else ("noise",))
            for n in range(len(contribution.drafts))
        )
        return ContributionReceipt(
            contribution_id="ctb_1",
            datanet=contribution.datanet,
            contributor_id=contribution.contributor_id,
            verdicts=verdicts,
        )

    async def leaderboard(self, name: str, *, after: str = "", limit: int = 100) -> dict[str, Any]:
        return {**sample_leaderboard(await self.datanet(name)), **self.told.get("leaderboard", {})}

    async def key_holder(self, public_key: str) -> str:
        return contributor_id(public_key)

    async def seal(self, seal: Seal) -> SealReceipt:
        await self.datanet(seal.datanet)
        check_seal(seal)
        self.sealed.setdefault((seal.contributor_id, seal.digest), seal)
        return await self.find_seal(seal.datanet, seal.contributor_id, seal.digest)

    async def find_seal(self, datanet: str, contributor_id: str, digest: str) -> SealReceipt:
        if (contributor_id, digest) not in self.sealed:
            raise NotFound("there is no such seal", code="unknown_seal", param="digest")
        return SealReceipt(
            datanet=datanet,
            contributor_id=contributor_id,
            digest=digest,
            sealed_ms=1_700_000_000_000,
            expires_ms=1_700_604_800_000,
            state=self.seal_state,
        )

    async def appeals(self, datanet: str) -> list[dict[str, Any]]:
        return list(self.told.get("appeals", []))

    async def disputes(self, adapter: str, period: str) -> list[dict[str, Any]]:
        return list(self.told.get("disputes", []))

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        return tuple(
            Verdict(row_id=f"row_{number}", ordinal=number, outcome="accept")
            for number in range(len(contribution.drafts))
        )

    async def contribution(self, name: str, identifier: str, reader: str = "") -> ContributionReceipt:
        if identifier not in self.receipts:
            raise NotFound(f"{name!r} has no contribution {identifier}", code="unknown_contribution")
        return self.receipts[identifier]

    async def withdraw(self, withdrawal: Withdrawal) -> dict[str, Any]:
        self.withdrawn.append(withdrawal)
        return _removal(withdrawal.datanet, "withdrawn", len(withdrawal.row_ids))

    async def remove_rows(self, account: str, name: str, row_ids: Sequence[str], reason: str) -> dict[str, Any]:
        self.removed.append((account, name, tuple(row_ids), reason))
        return _removal(name, "removed", len(row_ids))

    async def mark(self, account: str, answer_id: str, verdict: str) -> str:
        if verdict != "wrong":
            raise InvalidInput(f"{verdict!r} is no verdict", code="invalid_verdict", param="verdict")
        if answer_id != "ans_1":
            raise NotFound(f"no answer {answer_id} was sold", code="answer_not_sold", param="answer_id")
        self.marked.append((account, answer_id))
        return f"{answer_id}.verdict"

    async def report(self) -> dict[str, Any]:
        return self.told

    async def checkpoint(self) -> str:
        return CHECKPOINT

    async def audit(self) -> dict[str, Any]:
        return {"ok": True, "entries": 321, "leaves": 42, "message": "321 entries"}

    async def receipt(self, account: str, answer_id: str) -> bytes:
        if answer_id != "ans_1":
            raise NotFound(f"{account} paid for no answer {answer_id}", code="answer_not_sold", param="answer_id")
        return RECEIPT

    async def proof(self, transfer_id: str) -> bytes:
        if transfer_id != "trf_1":
            raise NotFound(f"there is no transfer {transfer_id!r}", code="unknown_transfer", param="transfer_id")
        return PROOF

    async def payouts(self, account: str | None = None) -> list[dict[str, Any]]:
        payouts = [
            _payout("trf_1", "contributor:ctr_os", 4_000_000, "os-docs"),
            _payout("trf_2", "user:alice", 1_500, "os-docs"),
            _payout("trf_3", "contributor:ctr_numpy", 2_300_000, "numpy-docs"),
        ]
        return [payout for payout in payouts if account in (None, payout["account"])]

    async def attribution(self, answer_id: str) -> dict[str, Any]:
        for answer in self.told.get("answers", []):
            if answer["answer_id"] == answer_id:
                return dict(answer)
        raise NotFound(f"there is no answer {answer_id!r}", code="unknown_answer", param="answer_id")

    async def row_scores(
        self, adapter: str, period: str, *, account: str = "", contributor: str = "", limit: int = 100, after: str = ""
    ) -> dict[str, Any]:
        self.rows_asked_by = account
        if not self.told.get("row_scores"):
            raise NotFound("no rows' scores are kept", code="no_row_scores", param="period")
        told = self.told["row_scores"]
        rows = [row for row in told["rows"] if contributor in ("", row["contributor_id"])]
        places = [row["row_id"] for row in rows]
        left = rows[places.index(after) + 1 :] if after else rows
        page = {"rows": left[:limit], "has_more": len(left) > limit}
        page["next"] = left[limit - 1]["row_id"] if page["has_more"] else ""
        return {**told, "adapter": adapter, "period": period, **page}


class SlowToStart(MemoryService):
    """Says nothing until it is cancelled."""

    async def chat(self, **_: Any) -> AsyncIterator[AnswerEvent]:
        try:
            await asyncio.sleep(3600)
            yield AnswerEvent(text="never", token_count=1)
        finally:
            self.num_closed += 1


def wait_until(condition: Any, seconds: float = 10.0) -> bool:
    """Whether `condition()` came true; looks every few milliseconds."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def sample_report() -> dict[str, Any]:
    names = ("os-docs", "numpy-docs", "pyarrow-docs", "torch-docs")
    datanets = [_datanet(name, number) for number, name in enumerate(names, start=1)]
    return {
        "period": "p1",
        "base_model": {"name": "openledger-base", "digest": "9f2c" * 16},
        "totals": {
            "rows_in": 2846, "accepted": 2310, "rejected": 451, "review": 85, "answers": 48,
            "fees_nano": 48_210_000, "paid_nano": 19_004_112, "unattributed_nano": 5_100_888,
        },
        "datanets": datanets,
        "answers": [_answer(number) for number in range(1, 9)],
        "gaming": [
            _gaming("copier", "path-copier", 0, "posixpath", 4_100_000, 0.0),
            _gaming("spammer", "noise-source", 0, "honest median", 1_900_000, 0.0),
            _gaming("splitter", "json", 1_210_000, "json as one", 1_260_000, 0.96),
        ],
        "ledger": {
            "checkpoint": CHECKPOINT,
            "audit": {"ok": True, "entries": 321, "leaves": 42, "message": "321 entries and 42 leaves recomputed"},
            "vkey": "openledger.test/ledger+3f1c7a20+AV9m0y7J3u2rD3kQmWlJxH0tq8o7N7i4x2dF5m9cYb1c",
        },
        "row_scores": {
            "adapters": [{"adapter_digest": "ab" * 32, "deviation": 0.0, "corrected": True}],
            "rows": [_row_scores("row_1", "ctr_os", 52), _row_scores("row_2", "ctr_os_io", -8)],
        },
        "disputes": [_dispute("ctr_os", "upheld"), _dispute("ctr_numpy", "open"), _dispute("ctr_os_io", "expired")],
        "appeals": [_appeal("row_1", "open"), _appeal("row_2", "overturned")],
        "urls": {"console": "http://127.0.0.1:8000/console", "api": "http://127.0.0.1:8000/v1",
                 "dashboard": "http://127.0.0.1:8265"},
        "stages": [
            {"name": "start", "seconds": 9.1, "detail": "Ray with 4 shards and the ledger"},
            {"name": "contribute", "seconds": 14.6, "detail": "2,846 rows from 37 contributors, 2,310 accepted"},
            {"name": "train", "seconds": 92.3, "detail": "4 adapters, 300 rows each, on 2 workers"},
            {"name": "index", "seconds": 31.0, "detail": "1,200 gradients"},
            {"name": "ask", "seconds": 22.8, "detail": "48 answers, all paid"},
            {"name": "settle", "seconds": 18.4, "detail": "4 pools to 33 contributors"},
        ],
    }  # fmt: skip


def _row_scores(row_id: str, contributor: str, nano: int) -> dict[str, Any]:
    found = {"this_run_nano": 1000 + nano, "expected_nano": nano, "error_nano": 7}
    return {"row_id": row_id, "contributor_id": contributor, "use": found, "improvement": {**found, "error_nano": 9}}


def sample_leaderboard(datanet: dict[str, Any]) -> dict[str, Any]:
    week_ms = 7 * 86_400_000
    people = [
        {
            "rank": place + 1,
            **{name: one[name] for name in ("contributor_id", "name", "accepted", "rejected", "review", "earned_nano")},
            "duplicates": one["reasons"].get("near_duplicate", 0), "removed": 0, "rows_a_day": one["accepted"] // 9,
            "rows_a_week": one["accepted"] // 2, "weeks_active": 1 + place % 3,
            "first_ms": 1_700_000_000_000, "last_ms": 1_700_400_000_000, "feedback": {"rating": place},
            "first_payout_ms": 93_784_000 if one["earned_nano"] else None,
        }
        for place, one in enumerate(datanet["contributors"])
    ]  # fmt: skip
    cohorts = [{"week_ms": (2_810 + n) * week_ms, "active": [3 - n, 2 - n, 1][: 3 - n]} for n in range(2)]
    return {
        "datanet": datanet["name"], "contributors": people, "cohorts": cohorts, "has_more": False,
        "num_contributors": len(people), "rows_a_week": sum(one["rows_a_week"] for one in people),
        "duplicates": sum(one["duplicates"] for one in people),
        "reviewers": [{"reviewer": "user:owner", "num_reviews": 12}],
    }  # fmt: skip


def _datanet(name: str, number: int) -> dict[str, Any]:
    module = name.removesuffix("-docs")
    return {
        "name": name,
        "summary": f"What the functions and classes of {module} do",
        "version": number,
        "row_root": f"{number}a3b" * 16,
        "rows_in": 700 + number, "accepted": 570, "rejected": 110, "review": 21 + number,
        "reasons": {"near_duplicate": 61, "too_short": 34, "noise": 15},
        "adapter": {
            "name": name, "digest": f"c{number}d4" * 16, "final_loss": 0.83 + number / 10, "rows_trained": 300,
            "loss_curve": [4.1 / (1 + step / 12) + 0.2 * ((step * 7) % 5) / 5 for step in range(75)],
            "evaluation": {"rouge_held_in_adapter": 0.412, "rouge_held_in_base": 0.147,
                           "rouge_new_adapter": 0.171, "rouge_new_base": 0.160},
        },
        "attribution": {"method": "counterfactual bank", "gain_nano": 7, "quality": {"lds": "0.31 (0.22 to 0.39)"}},
        "pool_nano": 6_026_250, "unattributed_nano": 1_275_222,
        "contributors": [
            _contributor(f"ctr_{module}", module, "honest", 240, 12, 412_000_000, 2_482_815, {"near_duplicate": 12}),
            _contributor(f"ctr_{module}_path", f"{module}.path", "honest", 190, 8, 288_400_112, 1_737_970, {}),
            _contributor(f"ctr_{module}_io", f"{module}.io", "honest", 137, 3, 88_000_000, 530_310,
                         {"too_short": 3}),
            _contributor(f"ctr_{module}_copier", f"{module}-copier", "copier", 2, 58, 0, 0, {"near_duplicate": 58}),
            _contributor(f"ctr_{module}_spam", f"{module}-spam", "spammer", 1, 29, 0, 0,
                         {"noise": 15, "too_short": 14}),
        ],
    }  # fmt: skip


def _contributor(
    contributor_id: str, name: str, kind: str, accepted: int, rejected: int, share: int, nano: int,
    reasons: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    return {
        "contributor_id": contributor_id, "name": name, "kind": kind, "accepted": accepted, "rejected": rejected,
        "review": 3, "reasons": reasons, "share_ppb": share, "earned_nano": nano, "error_ppb": share // 20,
        "rows_trained": accepted // 2, "transfer_id": "trf_1" if nano else "",
    }  # fmt: skip


def _answer(number: int) -> dict[str, Any]:
    return {
        "answer_id": f"ans_{number}", "adapter": "os-docs", "kind": "held_in" if number % 2 else "new",
        "question": f"What does the function os.path.join(path, *paths) do, asked the {number}. time?",
        "answer": "Join one or more path segments intelligently.",
        "fee_nano": 1000, "parts": {"pool:os-docs:p1": 500, "user:owner": 200, "treasury": 300},
        "sources": [
            {"row_id": f"row_{number}_{rank}", "contributor_id": "ctr_os", "contributor": "os.path",
             "source": "os.path.join", "prompt": "What does the function os.path.join do?",
             "completion": "Join one or more path components.", "score": score}
            for rank, score in enumerate((0.412, 0.207, 0.066, -0.031))
        ],
    }  # fmt: skip


def _dispute(contributor: str, state: str) -> dict[str, Any]:
    closed = {"closed_ms": 1_700_300_000_000}
    by = {"scorer": "user:auditor", "public_key": "5c" * 32, "recomputed_nano": 2_900_000, "num_answers": 48,
          "answers_nano": 6_026_250} if state == "upheld" else {}  # fmt: skip
    return {
        "dispute_id": f"dsp_{contributor}", "adapter": "os-docs", "period": "p1", "contributor": contributor,
        "account": f"contributor:{contributor}", "reason": "my rows on paths are missing", "state": state,
        "claimed_nano": 3_000_000, "paid_nano": 2_482_815, "contested_nano": 517_185, "pool_nano": 6_026_250,
        "deposit_nano": 100_000_000, "opened_ms": 1_700_000_000_000, "deadline_ms": 1_701_209_600_000,
        "award_nano": 417_185 if by else 0, "verdict": None if state == "open" else by | closed,
    }  # fmt: skip


def _appeal(row_id: str, state: str) -> dict[str, Any]:
    decision = {"account": "user:owner", "public_key": "0e" * 32, "note": "it is a checksum indeed",
                "closed_ms": 1_700_300_000_000}  # fmt: skip
    return {
        "row_id": row_id, "datanet": "os-docs", "contributor_id": "ctr_os", "contribution_id": "ctb_1",
        "outcome": "reject", "reasons": ["noise"], "duplicate_of": "", "reason": "it is a checksum", "state": state,
        "deposit_nano": 100_000_000, "opened_ms": 1_700_000_000_000, "deadline_ms": 1_701_209_600_000,
        "decision": None if state == "open" else decision, "transfer_id": f"apl_{row_id}",
        "closing_id": None if state == "open" else f"apl_{row_id}_end",
    }  # fmt: skip


def _gaming(kind: str, name: str, earned: int, reference: str, reference_nano: int, ratio: float) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "earned_nano": earned, "reference": reference, "reference_nano": reference_nano,
        "ratio": ratio, "identities": 3 if kind == "splitter" else 1, "accepted": 2, "sent": 60,
    }  # fmt: skip


def _payout(transfer_id: str, account: str, amount_nano: int, adapter: str) -> dict[str, Any]:
    return {
        "transfer_id": transfer_id, "account": account, "amount_nano": amount_nano, "adapter": adapter,
        "period": "p1", "time_ms": 1_700_000_123_000,
    }  # fmt: skip


def _model(name: str, number: int) -> ModelEntry:
    return ModelEntry(
        base_model="openledger-base", base_digest="ba" * 32,
        id=name, created_ms=1_700_000_000_000, owned_by="user:owner", datanet=name, datanet_version=number,
        adapter_digest=f"c{number}d4" * 16, prompt_price_nano=10, completion_price_nano=40,
    )  # fmt: skip


async def _closed(method: str, *arguments: Any) -> Any:
    if method == "parameter_table":
        return {"unit": {"name": "OPEN"}}
    raise Unavailable("no economy stands behind this service", code="no_economy")


def _removal(datanet: str, kind: str, num_rows: int) -> dict[str, Any]:
    adapter = {
        "name": datanet, "adapter_digest": "ab" * 32, "served": True, "num_trained": num_rows, "num_held_out": 0,
        "without": ["ctr_1"],
    }  # fmt: skip
    return {
        "removal_id": "rmv_1", "datanet": datanet, "kind": kind, "num_rows": num_rows, "rows_root": "ab" * 32,
        "transfer_id": "rmv_1", "adapters": [adapter],
    }  # fmt: skip


def _refuse(account: str, model: str, messages: Sequence[dict[str, str]]) -> None:
    if model not in ("os-docs", "numpy-docs"):
        raise NotFound(f"there is no model {model!r}", code="unknown_model", param="model")
    if not any(message["content"].strip() for message in messages):
        raise InvalidInput("the prompt is empty", code="empty_prompt", param="messages")
    if account == "user:poor":
        raise InsufficientFunds("0.000000100 OPEN are missing", param="account", fix="top the account up")


def _receipt(num_words: int) -> Receipt:
    fee_nano = 7 * 10 + 2 * num_words * 40
    parts = split(fee_nano, {"pool:os-docs:p1": 50, "user:owner": 20, "treasury": 30})
    return Receipt(
        answer_id="ans_1",
        prompt_tokens=7,
        completion_tokens=2 * num_words,
        fee_nano=fee_nano,
        parts=parts,
        signed=SIGNED,
        cached_tokens=3,
    )
