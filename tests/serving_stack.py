"""HTTP, economy, ledger and a real engine in one process, without Ray: what a paid answer goes through from end to end.

The engine's handle is as Serve's: `handle.generate.options(stream=True).remote(request, place)`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai

from openledger.adapters.registry import AdapterRegistry
from openledger.adapters.sources import SourceRules
from openledger.api import create_app
from openledger.core.values import AdapterTerms, EmbeddingRequest, GenerationRequest, TokenEvent
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.openlora.inbox import EventInbox
from openledger.openlora.outbox import EventOutbox
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.tiers import AdapterTiers, TierOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.openlora.wire import Line
from openledger.platform.live import LiveService
from openledger.platform.workdir import Workdir

FUNDS = 10**15
OWNER = "user:owner"


class Local:
    """An object whose methods are called as an actor's are."""

    def __init__(self, target: Any):
        self._target = target

    def __getattr__(self, name: str) -> Any:
        async def remote(*arguments: Any) -> Any:
            return getattr(self._target, name)(*arguments)

        return SimpleNamespace(remote=remote)


class EngineHandle:
    """Makes its server on the loop on which it is first asked."""

    def __init__(self, engine: TorchEngine, registry: AdapterRegistry, options: ServingOptions, tiers: AdapterTiers):
        self._make = lambda: AdapterServer(engine, registry, options, tiers)
        self.server: AdapterServer | None = None
        self._outbox: EventOutbox | None = None

    @property
    def generate(self) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._generate))

    @property
    def send(self) -> Any:
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(self._send(*arguments)))

    @property
    def embed(self) -> Any:
        return SimpleNamespace(remote=lambda *arguments: asyncio.ensure_future(self._embed(*arguments)))

    async def _embed(self, request: EmbeddingRequest, place: str) -> Any:
        return await self._started().embed(request, place)

    async def _send(self, request: GenerationRequest, place: str, line: Line) -> None:
        server = self._started()
        self._outbox = self._outbox or EventOutbox(server.leave, server.options.coalesce_s)
        await self._outbox.send(server.generate(request, place), request.request_id, line)

    def _started(self) -> AdapterServer:
        self.server = self.server or self._make()
        return self.server

    async def _generate(self, request: GenerationRequest, place: str) -> AsyncIterator[TokenEvent]:
        events = self._started().generate(request, place)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


@dataclass
class Stack:
    url: str
    economy: Economy
    engine: EngineHandle
    registry: AdapterRegistry
    workdir: Workdir
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, account: str = "user:alice", **settings: Any) -> openai.OpenAI:
        if account not in self.keys:
            self.economy.grant(account, FUNDS, f"grant-{account}")
            self.keys[account] = self.economy.create_key(account)
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.keys[account], **{"max_retries": 0, "timeout": 60, **settings}
        )

    def spent_nano(self, account: str = "user:alice") -> int:
        return FUNDS - self.economy.balance(account).available_nano

    def held_nano(self, account: str = "user:alice") -> int:
        balance = self.economy.balance(account)
        return balance.posted_nano - balance.available_nano


@contextmanager
def running_stack(
    base: Any,
    folders: dict[str, Path],
    digests: dict[str, str],
    root: Path,
    *,
    engine: EngineOptions | None = None,
    datanets: Any = None,
    line: bool = True,
    **serving: Any,
) -> Iterator[Stack]:
    """The adapters of `folders` are sold under their names, by `user:owner`. Events take a line, or come one by one."""
    from served_app import served

    workdir = Workdir(root)
    registry = AdapterRegistry(workdir.adapters)
    ledger = Ledger(workdir.ledger / "ledger.db")
    economy = Economy(ledger, workdir.ledger)
    rules = SourceRules(folders=(str(workdir.incoming), *(str(folder.parent) for folder in folders.values())))
    tiers = AdapterTiers(TierOptions(disk_folder=str(root / "cache")), rules)
    handle = EngineHandle(TorchEngine(base, engine), registry, ServingOptions(**serving), tiers)
    for name, folder in folders.items():
        registry.register(name, None, digests[name], terms(name, digests[name]), source=str(folder))
    inbox = EventInbox("127.0.0.1") if line else None
    service = LiveService(workdir, {base: handle}, Local(datanets), Local(ledger), Local(economy), rules, inbox)
    with served(create_app(service)) as url:
        yield Stack(url=url, economy=economy, engine=handle, registry=registry, workdir=workdir)
    if handle.server is not None:
        handle.server.close()
    economy.close()
    ledger.close()


def terms(name: str, digest: str) -> AdapterTerms:
    return AdapterTerms(
        adapter=name, adapter_digest=digest, datanet="greek", datanet_version=1, row_root="aa", owner_account=OWNER,
        prompt_price_nano=100, completion_price_nano=1000,
    )  # fmt: skip
