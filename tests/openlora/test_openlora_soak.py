"""Random requests, valid and not, for a while: each is answered or refused once, and nothing is left behind.

Ten minutes in the slow suite; OPENLEDGER_SOAK_S sets another length.
"""

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openlora_models import Served, prompt_of, request

from openledger.core.errors import Conflict, OpenLedgerError
from openledger.core.values import GenerationRequest, Grammar, TokenEvent
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

BLOCKS = 12  # of 64 that eight full answers would take
GRAMMARS = (None, None, None, Grammar(kind="regex", text="[a-z]{2,9}"), Grammar(kind="json_object"))
BAD: tuple[dict[str, Any], ...] = (
    {"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -2},
    {"stop": ("",)}, {"num_answers": 0}, {"logprobs": 99}, {"grammar": Grammar(kind="regex", text="((")},
    {"grammar": Grammar(kind="json_schema", text="{")},
)  # fmt: skip


class Soak:
    """One engine, and everything that can happen to it."""

    def __init__(self, served: Served, seed: int):
        self.served, self.random = served, random.Random(seed)
        self.engine = TorchEngine(
            served.base, EngineOptions(max_batch=8, step_tokens=48, max_waiting=40, kv_bytes=BLOCKS * 16 * 384)
        )
        for name, folder in served.folders.items():
            self.engine.load(served.digests[name], folder)
        self.ends: dict[str, int] = {}
        self.asked: dict[str, GenerationRequest] = {}
        self.reasons: dict[str, int] = {}

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(self.random.choice([0, 0, 1, 1, 3])):
                self._ask()
            self._disturb()
            self._hear(self.engine.step())
        while self.engine.has_work():
            self._hear(self.engine.step())

    def _ask(self) -> None:
        asked = self._request(str(len(self.asked)))
        self.asked[asked.request_id] = asked
        self.engine.add(asked)

    def _request(self, name: str) -> GenerationRequest:
        choose = self.random.choice
        adapters = list(self.served.digests.values())
        wanted = {
            "max_tokens": choose([1, 4, 9, 40, 60]),
            "temperature": choose([0.0, 0.0, 1.0]),
            "top_p": choose([1.0, 0.9]),
            "top_k": choose([0, 5]),
            "seed": choose([None, 1, 1 << 70]),
            "stop": choose([(), (), ("a",)]),
            "logprobs": choose([None, None, 2]),
            "prompt_logprobs": choose([None, None, None, 1]),
            "frequency_penalty": choose([0.0, 0.0, 1.0]),
            "num_answers": choose([1, 1, 1, 3]),
            "ignore_end": choose([True, False]),
            "grammar": choose(GRAMMARS),
        }
        length, adapter = choose([1, 5, 17, 30, 70, 110]), choose(["", *adapters, *adapters])
        if self.random.random() < 0.25:
            wanted |= choose(BAD)
        elif self.random.random() < 0.1:
            length, adapter = choose([0, 200]), choose(["", "0" * 64])
        asked = request(name, prompt_of(length, choose([0, 1, 2])), adapter, **wanted)
        ensemble = ((adapters[0], 0.5), (adapters[1], choose([-1.0, 2.0]))) if self.random.random() < 0.1 else ()
        return replace(asked, tenant=choose(["", "alice", "bob"]), ensemble=ensemble)

    def _disturb(self) -> None:
        happens, digest = self.random.random(), self.random.choice(list(self.served.digests.values()))
        if happens < 0.15 and self.asked:
            self.engine.cancel(str(self.random.randrange(len(self.asked) + 1)))
        elif happens < 0.2:
            try:
                self.engine.score(prompt_of(9), prompt_of(9), [digest, ""])
            except OpenLedgerError as error:
                assert error.code == "unknown_adapter"  # noqa: PT017  the only one it may raise
        elif happens < 0.25:
            try:
                self.engine.unload(digest)
            except Conflict:
                return
        elif happens < 0.35:
            name = next(name for name, each in self.served.digests.items() if each == digest)
            self.engine.load(digest, self.served.folders[name])

    def _hear(self, events: list[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.ends, "an event after the last"
            if event.finish_reason is not None:
                self.reasons[event.finish_reason] = self.reasons.get(event.finish_reason, 0) + 1
            if event.is_last:
                self.ends[event.request_id] = 1


def _check(soak: Soak) -> None:
    counts = soak.engine.describe()
    assert soak.ends.keys() == soak.asked.keys()
    assert {counts[name] for name in ("running", "waiting")} == {0}
    assert (counts["free_slots"], counts["free_blocks"]) == (8, BLOCKS)
    assert counts["known_blocks"] <= BLOCKS
    assert counts["preempted"] > 0
    assert soak.reasons.keys() == {"stop", "length", "cancelled", "error"}


def test_every_request_ends_once_and_nothing_is_left(served: Served) -> None:
    soak = Soak(served, seed=5)
    soak.run(1.5)
    _check(soak)


@pytest.mark.slow
def test_so_it_is_after_a_long_time(served: Served) -> None:
    """Open files and memory don't grow either: what the second half adds is noise."""
    seconds = float(os.environ.get("OPENLEDGER_SOAK_S", "600"))
    soak = Soak(served, seed=7)
    soak.run(seconds / 2)
    before = _resident_bytes()
    soak.run(seconds / 2)
    grown = _resident_bytes() - before
    print(f"{len(soak.asked)} requests, answers {soak.reasons}, {grown >> 10} KiB more", soak.engine.describe())
    _check(soak)
    assert grown < 64 << 20


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0
