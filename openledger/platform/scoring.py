"""How likely an answer is under adapters, asked at a settlement: of the engines that serve, or of the bank's own code.

What an adapter gained over its base says the engine of that base, which served it, in whatever precision it serves. The
members of an adapter's bank are asked there too, by digest and folder: no name is registered for one, so that no
customer can ask for it. Scoring goes in packed prefills that give way to whoever waits for an answer.

A bank's members differ by little, so what says them apart must compute as their training did: in float32, with the
base's weights as they are. Each call says so, for every replica chooses its own precision: one that has less refuses.
Where the engine serves in less, where none serves, where it is lost on the way, or where a sample of what it says is
more than `TOLERANCE_NATS` from what the bank's own code says, that code (`training.packed`, in the index actor) says
all of it: never a part, for two scorers' rounding must not stand in one regression. Which of them it was, and why,
stands in the settlement (`scored_by`, `scored_because`).

Shapes: M members of a bank, K of them in a sample, Q answers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.serve.exceptions import RayServeException

from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.bank_folder import KeptBank, member_adapters
from openledger.core.errors import NotFound, OpenLedgerError, TooManyRequests, Unavailable
from openledger.core.values import Answer
from openledger.openlora.engine import precision_of
from openledger.platform.calls import reason_of

Array = npt.NDArray[np.float64]

TOLERANCE_NATS = 1e-3  # of an answer's mean over its tokens: float32 differs by 2e-6, bfloat16 by up to 4e-2
PACKED = "packed float32"
_EXACT = "openlora float32"
_TRIES = 3
_PAUSE_S = 1.0
_CALL_S = 900.0  # scoring has 3 % of an engine's time where people never leave a gap
_IN_FLIGHT = 4
_LOST = (ray.exceptions.RayError, RayServeException, OSError)
_TOO_SLOW = "scorer_too_slow"
_SAMPLED_ANSWERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BankOutcomes:
    """Mean log-likelihood per token of each answer under each coalition, [M, Q]; `stated` says who told it."""

    outcomes_MQ: Array
    stated: Mapping[str, str]


class EngineScorer:
    """`engines` are the handles of OpenLoRA's deployments by their bases' digests; under "" the first. With `registry`
    it is known which base's engine an adapter was served by; without one the first scores all."""

    def __init__(self, engines: Mapping[str, Any], registry: AdapterRegistry | None = None, pause_s: float = _PAUSE_S):
        self._engines, self._registry, self._pause_s = engines, registry, pause_s
        self._told: dict[str, Mapping[str, Any]] = {}

    def __call__(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], adapter_digests: Sequence[str]
    ) -> npt.NDArray[np.float32]:
        """See `core.scoring.Scorer`. Raises Unavailable (`base_not_served`, `scorer_lost`), and what the engine says is
        wrong with the adapter or the answer."""
        engine = self._engine(self._base_of(adapter_digests))
        return _scores(self._asked(partial(engine.score.remote, prompt_ids, completion_ids, adapter_digests)))

    def precision(self, base_digest: str) -> str:
        """What a replica of the base's engine computes with (`precision_of`). Another may have chosen otherwise."""
        return precision_of(self._description(base_digest))

    def num_members_at_once(self, base_digest: str) -> int:
        """As many as half of the engine's slots hold, and no more than those that no pinned adapter keeps."""
        return max(1, min(int(self._description(base_digest)["max_resident"]) // 2, self._free_slots(base_digest)))

    def score_members(self, base_digest: str, members: Sequence[tuple[str, Path]], answers: Sequence[Answer]) -> Array:
        """Mean log-likelihood per token of each answer under each of `members` (digest and folder), [M, Q], in float32.
        `num_members_at_once`, each brought into a slot once. Raises as `__call__`, and Conflict (`other_precision`)
        where any replica that is asked computes in less."""
        engine, size = self._engine(base_digest), self.num_members_at_once(base_digest)
        chunks = [members[begin : begin + size] for begin in range(0, len(members), size)]
        # with fewer free slots calls would wait for each other's
        in_flight = _IN_FLIGHT if self._free_slots(base_digest) >= 2 * size else 1
        return np.concatenate([self._score_some(engine, chunk, answers, in_flight) for chunk in chunks])

    def _free_slots(self, base_digest: str) -> int:
        told = self._description(base_digest)
        return int(told["max_resident"]) - len(told.get("pinned", ()))

    def _score_some(
        self, engine: Any, members: Sequence[tuple[str, Path]], answers: Sequence[Answer], in_flight: int
    ) -> Array:
        digests = tuple(digest for digest, _ in members)
        places = {digest: str(folder) for digest, folder in members}

        def ask(answer: Answer) -> Array:
            call = partial(engine.score.remote, answer.prompt_ids, answer.completion_ids, digests, places, _EXACT)
            return _scores(self._asked(call)).mean(axis=1, dtype=np.float64)

        with ThreadPoolExecutor(in_flight, "settlement-scores") as threads:
            return np.stack(list(threads.map(ask, answers)), axis=1)

    def _asked(self, call: Callable[[], Any]) -> Any:
        """What a call gives. One that was lost with its replica is made again: Serve starts another. One that took too
        long isn't: the next would take as long."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return _result(call())
            except Exception as error:
                found = _told(error)
                may_pass = isinstance(found, Unavailable | TooManyRequests) and found.code != _TOO_SLOW
                if not tries_left or not may_pass:
                    raise found from error
            time.sleep(self._pause_s)
        raise AssertionError("the last try returns or raises")

    def _description(self, base_digest: str) -> Mapping[str, Any]:
        if base_digest not in self._told:
            self._told[base_digest] = self._asked(self._engine(base_digest).describe.remote)
        return self._told[base_digest]

    def _engine(self, base_digest: str) -> Any:
        digest = "" if self._registry is None else base_digest
        if digest not in self._engines:
            raise Unavailable(
                f"no engine of the base model {digest[:12]} is serving on this cluster",
                code="base_not_served",
                param="base_models",
                fix="add the base to base_models and deploy again",
            )
        return self._engines[digest]

    def _base_of(self, adapter_digests: Sequence[str]) -> str:
        """The base of the first of the adapters of which it is known."""
        for digest in filter(None, adapter_digests if self._registry else ()):
            with suppress(NotFound):
                if self._registry and (base_digest := self._registry.find_digest(digest).base_digest):
                    return base_digest
        return ""


def bank_outcomes(
    score: Any, host: Any, adapter: RegisteredAdapter, bank: KeptBank, answers: Sequence[Answer]
) -> BankOutcomes:
    """Score the answers under an adapter's bank: by the engines, where `score` is an `EngineScorer` of engines that say
    it exactly; else by `host`, an index actor's handle."""

    def packed(reason: str = "") -> BankOutcomes:
        told_MQ = ray.get(host.bank_outcomes.remote(adapter.folder, bank, answers))
        return BankOutcomes(outcomes_MQ=told_MQ, stated=_stated(PACKED, scored_because=reason))

    if not isinstance(score, EngineScorer):
        return packed()
    try:
        if (precision := score.precision(adapter.base_digest)) != _EXACT:
            return packed(f"served by {precision}")
        members = member_adapters(Path(adapter.folder), bank)
        told_MQ = score.score_members(adapter.base_digest, members, answers)
    except Exception as error:  # noqa: BLE001 - whatever ended it, the bank's own code says the same
        return packed(reason_of(error))
    difference = _difference(told_MQ, host, adapter, bank, answers, score.num_members_at_once(adapter.base_digest))
    if not difference <= TOLERANCE_NATS:  # also where it is no number
        return packed(f"the engine differs by {difference:.2g} nats a token")
    return BankOutcomes(outcomes_MQ=told_MQ, stated=_stated(precision, scorer_difference=f"{difference:.1e}"))


def gains_stated(score: Any, base_digest: str) -> dict[str, str]:
    """What told the gains over the base, where that was an engine; "unknown" where none says so any more."""
    if not isinstance(score, EngineScorer):
        return {}
    try:
        return {"gains_by": score.precision(base_digest)}
    except OpenLedgerError:
        return {"gains_by": "unknown"}


def _difference(
    told_MQ: Array, host: Any, adapter: RegisteredAdapter, bank: KeptBank, answers: Sequence[Answer], at_once: int
) -> float:
    """How far apart the two scorers are at most, in a sample: of each `at_once` members that were asked together the
    first one's outcomes on a few answers over the pool."""
    step = max(1, len(answers) // _SAMPLED_ANSWERS)
    firsts = replace(bank, coalitions=bank.coalitions[::at_once])
    own_KQ = ray.get(host.bank_outcomes.remote(adapter.folder, firsts, answers[::step][:_SAMPLED_ANSWERS]))
    if told_MQ.shape != (len(bank.coalitions), len(answers)) or not np.isfinite(told_MQ).all():
        return float("nan")
    return float(np.abs(told_MQ[::at_once, ::step][:, :_SAMPLED_ANSWERS] - own_KQ).max())


def _stated(scored_by: str, **others: str) -> dict[str, str]:
    return {"scored_by": scored_by, **{name: text for name, text in others.items() if text}}


def _scores(told: Any) -> npt.NDArray[np.float32]:
    return np.asarray(told, dtype=np.float32)


def _result(response: Any) -> Any:
    try:
        return response.result(timeout_s=_CALL_S)
    except TimeoutError as error:
        response.cancel()  # or it goes on to take the engine's time
        raise Unavailable(
            f"the engine had not answered after {_CALL_S:g} s",
            code=_TOO_SLOW,
            fix="see how many of its slots are pinned and how busy it is, then settle again: nothing was paid",
        ) from error


def _told(error: Exception) -> Exception:
    """What the replica raised, as itself; else that it was lost."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, OpenLedgerError) or not isinstance(error, _LOST):
        return cause
    if isinstance(error, ray.exceptions.RayTaskError):
        return cause  # it lives, and something is wrong with what it was asked
    return Unavailable(
        f"the engine was lost while it scored an answer: {type(error).__name__}",
        code="scorer_lost",
        fix="see that the serving application is healthy, then settle again: nothing was paid",
    )
