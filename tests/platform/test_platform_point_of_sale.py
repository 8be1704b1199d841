"""What the point of sale asks of derived adapters, merges, withdrawals and plans."""

import json
from dataclasses import replace

import pytest
from nonce_values import NONCES, OWNER, WITNESS, draw_round
from trained_world import Remote

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, adapter_digest, save_card
from openledger.adapters.registry import AdapterRegistry
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict
from openledger.core.hashing import digest_json
from openledger.core.signing import SigningKey
from openledger.core.values import AdapterTerms, DatanetVersion
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.ledger.offers import lot_of, offer_id
from openledger.platform import point_of_sale
from openledger.platform.bases import offer_base
from openledger.training.recipe import Recipe, public_constant, row_root_constant
from openledger.training.start import Parent
from openledger.training.trainer import TrainingJob

SELLER = OWNER
RECIPE = Recipe()
BASE = BaseModel(path="", name="b", digest="base", max_positions=64)


class House:
    """A registry of small adapters, and a real economy that knows the rounds of the Datanets a (drawn) and b (none)."""

    def __init__(self, folder):
        (folder / "books").mkdir()
        self.ledger = Ledger(folder / "books" / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
        self._economy = Economy(self.ledger, folder / "books", ManualClock())
        self.economy = Remote(self._economy)
        self.registry = AdapterRegistry(folder / "adapters")
        purpose = point_of_sale.purpose_of("00", "base", RECIPE.to_dict())
        nonces = {OWNER: NONCES[OWNER], WITNESS: NONCES[WITNESS]}
        self.constant = public_constant("base", "a", 1, draw_round(self._economy, self.ledger, "a", 1, purpose, nonces))

    def close(self):
        self._economy.close()
        self.ledger.close()

    def card(self, name, datanet="a", **changed):
        """An adapter in a folder of its own, its card by the Datanet's round."""
        folder = self.registry.root / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(name)
        (folder / "adapter_config.json").write_text("{}")
        card = AdapterCard(
            name=name, digest=adapter_digest(folder), base_model="b", base_digest="base", datanet=datanet,
            datanet_version=1, row_root="00", rows_trained=("row_1",), contributors={"ctr_1": 1},
            recipe=RECIPE.to_dict(), environment={}, code_version="0", initial_a=self.constant, initial_from="nonces",
            final_loss=1.0,
        )  # fmt: skip
        card = replace(card, **changed)
        save_card(folder, card)
        return card

    def keep(self, card, seller=""):
        terms = AdapterTerms(
            adapter=card.name, adapter_digest=card.digest, datanet=card.datanet, datanet_version=1, row_root="00",
            owner_account=seller, prompt_price_nano=1, completion_price_nano=1,
        )  # fmt: skip
        self.registry.register(card.name, self.registry.root / card.name, card.digest, terms if seller else None)
        return card

    def child(self, name, *parents, **changed):
        told = {"parents": tuple((parent.digest, "1") for parent in parents), "initial_from": "parent"}
        told |= {"initial_a": f"adapter:{parents[0].digest}", "order": self.constant}
        return self.card(name, **{**told, **changed})

    def merge(self, name, *parents):
        return self.child(name, *parents, datanet="", rows_trained=(), contributors={}, initial_a="", order="")

    def asked(self, card):
        return [one.adapter for one in point_of_sale.trainings(self.registry, card, SELLER)]

    def refuses(self, card):
        with pytest.raises(Conflict) as caught:
            point_of_sale.check_offer(self.economy, self.registry, card.name, card, SELLER)
        assert caught.value.code == "constant_unwitnessed"
        return caught.value.message.partition(" ")[0]

    def takes(self, card):
        point_of_sale.check_offer(self.economy, self.registry, card.name, card, SELLER)


@pytest.fixture
def house(tmp_path, monkeypatch):
    monkeypatch.setattr(point_of_sale.ray, "get", lambda value: value)
    house = House(tmp_path)
    yield house
    house.close()


class TestThePurpose:
    def test_is_another_for_another_order_of_credit(self):
        roots = ("", "ab" * 32, "cd" * 32)
        told = [point_of_sale.purpose_of("00", "base", RECIPE.to_dict(), root) for root in roots]
        assert len({one.recipe_digest for one in told}) == 3
        assert {(one.row_root, one.base_digest) for one in told} == {("00", "base")}

    def test_of_a_version_without_one_is_what_it_was(self):
        """Rounds that were closed, and offers that were made, before versions had an order stay valid."""
        settings = json.dumps(RECIPE.to_dict(), sort_keys=True)
        assert point_of_sale.purpose_of("00", "base", RECIPE.to_dict()).recipe_digest == digest_json(settings)

    def test_binds_the_seller_to_the_order_that_the_round_was_closed_for(self, house):
        house.takes(house.card("one"))
        assert house.refuses(house.card("two", credit_root="ab" * 32)) == "two"


def unwitnessed(house, name, **changed):
    constant = row_root_constant("base", "b", 1, "00")
    return house.card(name, "b", initial_a=constant, initial_from="row_root", **changed)


class TestDerived:
    def test_every_generation_is_asked(self, house):
        child = house.child("child", house.keep(house.card("first")))
        assert house.asked(child) == ["child", "first"]
        house.takes(child)

    def test_a_witnessed_child_of_an_unwitnessed_parent_is_refused(self, house):
        assert house.refuses(house.child("child", house.keep(unwitnessed(house, "first")))) == "first"

    def test_also_where_the_parent_is_on_sale_since_before_the_rule(self, house):
        first = house.keep(unwitnessed(house, "first"), seller=SELLER)
        house.takes(first)
        assert house.refuses(house.child("child", first)) == "first"

    def test_an_unwitnessed_child_of_a_witnessed_parent_is_refused(self, house):
        first = house.keep(house.card("first"))
        assert house.refuses(house.child("child", first, order=row_root_constant("base", "a", 1, "00"))) == "child"

    def test_a_childs_card_of_before_which_names_no_constant_of_its_own_is_refused(self, house):
        assert house.refuses(house.child("child", house.keep(house.card("first")), order="")) == "child"

    def test_an_ancestor_that_is_sold_answers_to_its_own_seller(self, house):
        """Who buys the right to go on from it may have been its witness."""
        child = house.child("child", house.keep(house.card("first"), seller=OWNER))
        found = {one.adapter: one.seller for one in point_of_sale.trainings(house.registry, child, WITNESS)}
        assert found == {"child": WITNESS, "first": OWNER}


class TestMerges:
    def test_a_merge_answers_with_its_parents_constants(self, house):
        parents = [house.keep(house.card(name)) for name in ("one", "two")]
        merge = house.merge("both", *parents)
        assert house.asked(merge) == ["one", "two"]
        house.takes(merge)

    def test_one_parent_without_a_witness_refuses_it(self, house):
        parents = [house.keep(house.card("one")), house.keep(unwitnessed(house, "two"))]
        assert house.refuses(house.merge("both", *parents)) == "two"


def test_what_a_withdrawal_adds_to_the_recipe_is_no_other_recipe(house):
    house.takes(house.card("one", recipe={**RECIPE.to_dict(), "without": "ctr_1", "without_of": "ab"}))
    other = house.card("two", recipe={**RECIPE.to_dict(), "num_epochs": RECIPE.num_epochs + 1})
    assert house.refuses(other) == "two"


class TestPlans:
    def job(self, house, datanet, **changed):
        version = DatanetVersion(
            datanet=datanet, number=1, row_root="00", num_rows=1, gate_version="g/1", published_ms=1
        )
        nonces = (NONCES[OWNER], NONCES[WITNESS]) if datanet == "a" else ()
        output = str(house.registry.root / "planned")
        told = {"base": BASE, "version": version, "rows": (), "recipe": RECIPE, "output": output, "nonces": nonces}
        return TrainingJob(**{**told, "name": datanet, **changed})

    def check(self, house, job):
        point_of_sale.check_plan(house.economy, house.registry, job, SELLER)

    def test_one_by_a_drawn_round_may_be_trained_for_sale(self, house):
        self.check(house, self.job(house, "a"))

    def test_one_without_a_round_is_refused_before_it_is_trained(self, house):
        with pytest.raises(Conflict) as caught:
            self.check(house, self.job(house, "b"))
        assert caught.value.code == "constant_unwitnessed"

    def test_one_that_goes_on_from_an_unwitnessed_adapter_is_refused(self, house):
        first = house.keep(unwitnessed(house, "first"))
        parent = Parent(folder=str(house.registry.root / "first"), digest=first.digest)
        with pytest.raises(Conflict, match="first can't be offered"):
            self.check(house, self.job(house, "a", parent=parent))

    def test_one_that_was_trained_and_is_on_sale_may_be_found_again(self, house):
        unwitnessed_card = house.keep(unwitnessed(house, "planned"), seller=SELLER)
        job = self.job(house, "b", name="planned")
        self.check(house, job)
        house.registry.remove(unwitnessed_card.name)
        with pytest.raises(Conflict, match="planned can't be offered"):
            self.check(house, job)


class TestTheLog:
    def offer(self, house, card, seller=SELLER):
        terms = AdapterTerms(
            adapter=card.name, adapter_digest=card.digest, datanet=card.datanet, datanet_version=1, row_root="00",
            owner_account=seller, prompt_price_nano=1, completion_price_nano=1,
        )  # fmt: skip
        point_of_sale.log_offer(house.economy, house.registry, terms, card)
        return terms

    def sold(self, house, card):
        """In the registry, and not by this book in the log."""
        house.keep(card, seller=SELLER)
        return lot_of(house.registry.get(card.name).terms)

    def test_an_offer_is_in_the_log_once(self, house):
        card = house.card("one")
        self.offer(house, card)
        before = house.ledger.checkpoint()
        self.offer(house, card)
        assert house.ledger.checkpoint() == before
        assert house.ledger.audit().num_offers == 1

    def test_what_the_registry_has_on_sale_when_the_log_begins_needs_none(self, house):
        on_sale = self.sold(house, unwitnessed(house, "old"))
        self.offer(house, house.card("new"))
        assert house._economy.missing_offers([on_sale]) == []
        assert house.ledger.audit().num_offers == 1

    def test_what_has_no_witness_comes_into_no_log(self, house):
        point_of_sale.begin_offers(house.economy, house.registry)
        before = house.ledger.checkpoint()
        with pytest.raises(Conflict) as caught:
            self.offer(house, unwitnessed(house, "one"))
        assert (caught.value.code, house.ledger.checkpoint()) == ("constant_unwitnessed", before)

    def test_a_gateway_offers_what_a_restored_log_lacks_and_leaves_what_may_not_be(self, house, caplog):
        point_of_sale.begin_offers(house.economy, house.registry)
        good = self.sold(house, house.card("good"))
        bad = self.sold(house, unwitnessed(house, "bad"))
        offer_base(house.registry, replace(BASE, path="/models/b"), SELLER, (1, 1))
        point_of_sale.log_on_sale(house.economy, house.registry)
        assert house._economy.missing_offers([good, bad, lot_of(house.registry.get("b").terms)]) == [bad]
        assert "bad isn't sold until it is offered again" in caplog.text
        before = house.ledger.checkpoint()
        point_of_sale.log_on_sale(house.economy, house.registry)
        assert house.ledger.checkpoint() == before
        report = house.ledger.audit()
        assert (report.num_offers, report.num_base_offers) == (1, 1)

    def withdrawn(self, house, old, name="one"):
        """The run less a contributor's rows, registered in the old one's place."""
        recipe = {**RECIPE.to_dict(), "without": "ctr_1", "without_of": old.digest}
        folder = house.registry.root / f"{name}-less"
        less = replace(house.card(folder.name, old.datanet, recipe=recipe, initial_a=old.initial_a), name=name)
        save_card(folder, less)
        terms = replace(house.registry.get(name).terms, adapter_digest=less.digest)
        house.registry.switch(name, folder, less.digest, terms)
        return lot_of(terms)

    def kind_of(self, house, lot):
        found = house.ledger.find(offer_id(lot))
        return house.ledger.batch(found.seq).statement["kind"]

    def test_a_withdrawal_that_a_restored_log_lacks_is_offered_as_one(self, house):
        """Of what was on sale before the log asked for witnesses, and has none."""
        old = unwitnessed(house, "one")
        self.sold(house, old)
        point_of_sale.begin_offers(house.economy, house.registry)
        lot = self.withdrawn(house, old)
        point_of_sale.log_on_sale(house.economy, house.registry)
        assert house._economy.missing_offers([lot]) == []
        assert self.kind_of(house, lot) == "withdrawal"
        house.ledger.audit()

    def test_so_is_what_it_took_the_place_of_where_that_went_too(self, house):
        point_of_sale.begin_offers(house.economy, house.registry)
        old = house.card("one")
        before = self.sold(house, old)
        lot = self.withdrawn(house, old)
        point_of_sale.log_on_sale(house.economy, house.registry)
        assert (self.kind_of(house, before), self.kind_of(house, lot)) == ("trained", "withdrawal")
        house.ledger.audit()
