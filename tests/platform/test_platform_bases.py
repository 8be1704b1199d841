"""Several base models behind one service: a request goes to the engine of its adapter's base, and a base can be asked
and sold by itself."""

from pathlib import Path
from typing import Any

import pytest
from serving_stack import Local, terms
from tiny_model import make_tiny_base

from openledger.adapters.base_model import BaseModel
from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from openledger.core.values import GenerationRequest, SamplingParameters, TokenEvent
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.platform import pipeline
from openledger.platform.bases import Bases, offer_base
from openledger.platform.live import LiveService
from openledger.platform.workdir import Workdir

ALICE, OPERATOR, PRICES = "user:alice", "user:operator", (100, 1000)


class Engine:
    """Says one token, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[GenerationRequest, str]] = []

    @property
    def generate(self) -> "Engine":
        return self

    def options(self, **_: Any) -> "Engine":
        return self

    async def remote(self, request: GenerationRequest, place: str) -> Any:
        self.asked.append((request, place))
        yield TokenEvent(request_id=request.request_id, token_ids=(9,), text="so", finish_reason="length")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[BaseModel]:
    """Two with tokenizers of their own."""
    root = tmp_path_factory.mktemp("bases")
    return [make_tiny_base(root / "greek"), make_tiny_base(root / "latin", ("rosa", "aqua", "terra", "luna"))]


@pytest.fixture
def house(tmp_path: Path, bases: list[BaseModel]) -> Any:
    return House(tmp_path, bases)


class House:
    """A service over both bases, with an adapter of each and one of a third; the bases are sold by themselves."""

    def __init__(self, root: Path, bases: list[BaseModel]):
        self.engines = {base: Engine() for base in bases}
        workdir = Workdir(root)
        self.registry = AdapterRegistry(workdir.adapters)
        self.ledger = Ledger(workdir.ledger / "ledger.db")
        self.economy = Economy(self.ledger, workdir.ledger)
        self.economy.grant(ALICE, 10**12, "first")
        for name, base_digest in (
            ("on-greek", bases[0].digest),
            ("on-latin", bases[1].digest),
            ("on-norse", "no" * 32),
        ):
            told = terms(name, digest_of(name))
            self.registry.register(name, None, told.adapter_digest, told, source="/here", base_digest=base_digest)
        for base in bases:
            offer_base(self.registry, base, OPERATOR, PRICES)
        self.service = LiveService(workdir, self.engines, Local(None), Local(self.ledger), Local(self.economy))

    async def ask(self, model: str, text: str = "alpha") -> Any:
        asked = self.service.complete(
            account=ALICE, model=model, prompts=[text], sampling=SamplingParameters(max_tokens=1), idempotency_key=""
        )
        return [event async for event in asked][-1].receipt


def digest_of(name: str) -> str:
    return name[-2:] * 32


class TestAsking:
    @pytest.mark.parametrize(("model", "number"), [("on-greek", 0), ("on-latin", 1)])
    async def test_an_adapters_request_goes_to_its_bases_engine(self, house: House, model: str, number: int) -> None:
        await house.ask(model)
        asked = [[request.adapter_digest for request, _ in engine.asked] for engine in house.engines.values()]
        assert asked[number] == [digest_of(model)]
        assert asked[1 - number] == []

    async def test_text_is_encoded_as_that_base_does(self, house: House) -> None:
        for model in ("on-greek", "on-latin"):
            await house.ask(model, "rosa alpha")
        greek, latin = (engine.asked[0][0].prompt_ids for engine in house.engines.values())
        assert greek != latin

    @pytest.mark.parametrize("number", [0, 1])
    async def test_a_base_is_asked_by_its_name_without_an_adapter(self, house: House, number: int) -> None:
        base, engine = list(house.engines.items())[number]
        receipt = await house.ask(base.name)
        ((request, place),) = engine.asked
        assert (request.adapter_digest, place) == ("", "")
        assert receipt.fee_nano == len(request.prompt_ids) * PRICES[0] + PRICES[1]

    async def test_of_a_base_that_is_not_served_is_an_error_by_name_and_costs_nothing(self, house: House) -> None:
        with pytest.raises(Unavailable) as caught:
            await house.ask("on-norse")
        assert (caught.value.code, caught.value.param) == ("base_not_served", "model")
        assert house.economy.balance(ALICE).available_nano == 10**12

    async def test_all_are_listed_with_their_base(self, house: House) -> None:
        told = {model.id: (model.base_model, model.adapter_digest) for model in await house.service.models()}
        assert told == {
            "greek": ("greek", ""),
            "latin": ("latin", ""),
            "on-greek": ("greek", digest_of("on-greek")),
            "on-latin": ("latin", digest_of("on-latin")),
            "on-norse": ("no" * 6, digest_of("on-norse")),
        }


class TestSettling:
    async def test_what_a_base_earned_is_nobodys_share_and_the_log_stands(self, house: House) -> None:
        await house.ask("latin")
        period = house.economy.current_period()
        house.economy.open_period()
        pool = house.economy.pool("latin", period)
        found = pipeline.attribute(pool, lambda _: None, None, house.registry, Path())
        settlement = house.economy.settle(found.scores, {}, found.improvement, found.left_out)
        assert settlement.payouts_nano == {"unattributed": pool.total_nano}
        house.ledger.audit()


class TestOffer:
    def test_again_at_another_price_replaces_the_price(self, house: House, bases: list[BaseModel]) -> None:
        offer_base(house.registry, bases[0], OPERATOR, (5, 6))
        told = house.registry.get("greek").terms
        assert told is not None
        assert (told.prompt_price_nano, told.completion_price_nano) == (5, 6)

    def test_without_an_owner_it_is_sold_no_more_and_stays_findable(self, house: House, bases: list[BaseModel]) -> None:
        offer_base(house.registry, bases[0], "", PRICES)
        with pytest.raises(NotFound):
            house.registry.get("greek")
        assert house.registry.find_digest(bases[0].digest).is_base

    def test_an_adapter_of_its_name_is_not_pushed_aside(self, house: House, bases: list[BaseModel]) -> None:
        offer_base(house.registry, bases[0], "", PRICES)
        told = terms("greek", "dd" * 32)
        house.registry.register("greek", None, told.adapter_digest, told, source="/here")
        with pytest.raises(Conflict) as caught:
            offer_base(house.registry, bases[0], OPERATOR, PRICES)
        assert (caught.value.code, house.registry.get("greek").terms) == ("adapter_exists", told)


def test_adapters_that_name_no_base_are_of_the_first(house: House, bases: list[BaseModel]) -> None:
    house.registry.register("plain", None, "aa" * 32, source="/here")
    assert Bases(house.engines).of(house.registry.get("plain")).base == bases[0]


def test_one_base_under_two_names_is_refused(tmp_path: Path) -> None:
    twins = [make_tiny_base(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(InvalidInput) as caught:
        Bases({base: Engine() for base in twins})
    assert caught.value.code == "base_named_twice"
