"""Who stands for a training's constant beside its owner: what of it the point of sale reads in the log."""

from dataclasses import replace

import pytest
from economy_values import Town

from openledger.core.errors import Conflict
from openledger.core.money import NANO_PER_OPEN
from openledger.core.rekeying import first_keys, sign_change
from openledger.core.signing import SigningKey, contributor_id
from openledger.economy import Economy, Parameters
from openledger.economy.nonces import DEPOSIT_NANO, NonceBook
from openledger.economy.register import RegisterBook
from openledger.economy.witnesses import Training
from openledger.ledger import Ledger, parameters
from openledger.ledger.nonces import Purpose, commitment
from openledger.ledger.signers import Signer, sign_signer
from openledger.training.recipe import public_constant, row_root_constant

OWNER, WITNESS, OTHER, SECOND = "user:owner", "user:witness", "user:other", "user:second"
BASE = "ba" * 32
PURPOSE = Purpose(row_root="cd" * 32, base_digest=BASE, recipe_digest="ec" * 32)
KEY = SigningKey(b"o" * 32)
OWN_CONTRIBUTOR = f"contributor:{contributor_id(KEY.public_key)}"


def nonce(party):
    return party.encode().hex().ljust(64, "0")[:64]


def draw(town, *parties, owner=OWNER, reveal=True, close=True):
    """A round of version 1 of "py" in which `parties` commit; the training by its constant."""
    book = NonceBook(town.ledger)
    for party in {owner, *parties}:
        town.economy.grant(party, DEPOSIT_NANO, f"deposit of {party}")
    book.open("py", 1, owner)
    for party in parties:
        book.commit("py", 1, party, commitment("py", 1, party, nonce(party)))
    if close:
        book.close("py", 1, PURPOSE)
    for party in parties if close and reveal else ():
        book.reveal("py", 1, party, nonce(party))
    constant = public_constant(BASE, "py", 1, [nonce(party) for party in sorted(parties)])
    return Training(adapter="py", datanet="py", version=1, purpose=PURPOSE, constant=constant, seller=OWNER)


def refused(town, *trainings):
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.check_sale(trainings)
    assert (caught.value.code, caught.value.param) == ("constant_unwitnessed", "adapter")
    assert town.ledger.checkpoint() == before
    return caught.value


def with_witnesses(town, number):
    """The same town by another first set of parameters, in a folder of its own."""
    folder = town.folder / f"{number}"
    folder.mkdir()
    return Town(folder, town.clock, Parameters(witnesses_required=number))


def test_a_constant_to_which_a_witness_gave_a_nonce_may_be_sold(town):
    town.economy.check_sale([draw(town, OWNER, WITNESS)])


def test_a_version_without_a_round_is_refused_and_told_what_to_do(town):
    constant = row_root_constant(BASE, "py", 1, PURPOSE.row_root)
    found = refused(
        town, Training(adapter="py", datanet="py", version=1, purpose=PURPOSE, constant=constant, seller=OWNER)
    )
    assert "no round of nonces was opened" in found.message
    for told in ("--datanet py --commit-nonces WITNESS", "with --version 1", "witnesses_required", "govern propose"):
        assert told in found.fix


def test_a_constant_of_the_row_root_is_refused_beside_a_drawn_round(town):
    """What a trainer who dislikes the round's constant would put on his card."""
    drawn = draw(town, OWNER, WITNESS)
    found = refused(town, replace(drawn, constant=row_root_constant(BASE, "py", 1, PURPOSE.row_root)))
    assert "another constant" in found.message


@pytest.mark.parametrize("part", ["row_root", "base_digest", "recipe_digest"])
def test_a_round_that_was_closed_for_something_else_is_refused(town, part):
    drawn = draw(town, OWNER, WITNESS)
    found = refused(town, replace(drawn, purpose=replace(PURPOSE, **{part: "ff" * 32})))
    assert "other rows, another base model or another recipe" in found.message


def test_a_round_that_is_not_drawn_is_refused_naming_who_holds_it_up(town):
    assert f"{OWNER}, {WITNESS} have yet to reveal" in refused(town, draw(town, OWNER, WITNESS, reveal=False)).message


def test_a_round_that_is_not_closed_is_refused(town):
    assert "contributions aren't closed" in refused(town, draw(town, OWNER, WITNESS, close=False)).message


class TestNamesOfTheOwners:
    def test_the_seller_is_no_witness_of_a_round_that_another_name_of_his_opened(self, town):
        refused(town, draw(town, OWNER, SECOND, owner=SECOND))

    def test_a_second_name_by_a_key_of_the_owners_is_no_witness(self, town):
        for account in (OWNER, SECOND):
            signer = Signer(role="scorer", account=account, public_key=KEY.public_key)
            town.economy.add_signer(signer, sign_signer(KEY, "scorer", account)["signature"])
        refused(town, draw(town, OWNER, SECOND))

    @pytest.mark.parametrize("ended", [False, True])
    def test_nor_is_the_contributor_that_the_owners_key_stands_for(self, town, ended):
        signer = Signer(role="reviewer", account=OWNER, public_key=KEY.public_key, datanet="py")
        town.economy.add_signer(signer, sign_signer(KEY, "reviewer", OWNER, "py")["signature"])
        if ended:
            town.economy.end_signer(signer)
        refused(town, draw(town, OWNER, OWN_CONTRIBUTOR))

    def test_a_contributor_whose_key_is_nobody_elses_is_a_witness(self, town):
        town.economy.check_sale([draw(town, OWNER, OWN_CONTRIBUTOR)])


class TestHowMany:
    def test_two_accounts_of_one_key_are_one_witness(self, town):
        strict = with_witnesses(town, 2)
        signer = Signer(role="scorer", account=WITNESS, public_key=KEY.public_key)
        strict.economy.add_signer(signer, sign_signer(KEY, "scorer", WITNESS)["signature"])
        found = refused(strict, draw(strict, OWNER, WITNESS, OWN_CONTRIBUTOR))
        assert "it has 1 that are nobody's of its owner or seller, of 2 required" in found.message
        strict.close()

    def test_two_of_two_are_enough(self, town):
        strict = with_witnesses(town, 2)
        strict.economy.check_sale([draw(strict, OWNER, WITNESS, OTHER)])
        strict.close()

    def test_none_is_asked_for_where_the_parameter_says_so(self, town):
        lax = with_witnesses(town, 0)
        lax.economy.check_sale(
            [Training(adapter="py", datanet="py", version=1, purpose=PURPOSE, constant="", seller="")]
        )
        lax.close()

    def test_every_training_is_asked(self, town):
        drawn = draw(town, OWNER, WITNESS)
        parent = replace(drawn, adapter="parent", version=2)
        assert "parent can't be offered" in refused(town, drawn, parent).message


def test_a_log_of_before_asks_for_none_until_a_vote_and_from_the_next_period_on(tmp_path, clock):
    values = {name: value for name, value in Parameters().values.items() if name != "witnesses_required"}
    ledger = Ledger(tmp_path / "ledger.db", clock, SigningKey(b"k" * 32), "openledger/test")
    former = RegisterBook(ledger, clock)
    former.write(parameters.PARAMETERS, lambda *_: {"version": 4, "values": values})
    former.open_period("p0001")
    ledger.close()
    town = Town(tmp_path, clock)
    unwitnessed = Training(adapter="py", datanet="py", version=1, purpose=PURPOSE, constant="", seller=OWNER)
    assert (town.economy.parameters().version, town.economy.parameters().witnesses_required) == (4, 0)
    assert town.economy.parameter_table()["values"]["witnesses_required"] == 0
    town.economy.check_sale([unwitnessed])
    adopt(town, clock, {"witnesses_required": 1})
    town.economy.check_sale([unwitnessed])
    town.economy.open_period()
    refused(town, unwitnessed)
    town.ledger.audit()
    assert town.economy.parameters().version == 5
    town.close()


def adopt(town, clock, changes):
    first = Parameters()
    town.economy.grant("user:bob", 2000 * NANO_PER_OPEN, "bob")
    town.economy.stake("user:bob", "adapter:py", 1000 * NANO_PER_OPEN, "s")
    clock.advance(1)
    action = {"kind": "parameters", "changes": changes}
    proposal = town.economy.propose("user:bob", "witnesses", "why", action, "p1")["proposal"]
    clock.advance(first.vote_delay_ms + 1)
    town.economy.vote("user:bob", proposal, "for")
    clock.advance(first.vote_period_ms)
    clock.advance(first.vote_timelock_ms)
    town.economy.proposals()
    assert town.economy.proposal(proposal)["state"] == "Executed"


def test_the_parameter_has_bounds(town):
    with pytest.raises(Exception, match="witnesses_required is a whole number from 0 to 63"):
        Parameters(witnesses_required=64)
    assert isinstance(town.economy, Economy)


def test_a_replaced_key_still_says_whose_it_was_and_keeps_nobody_from_selling(town):
    """An owner who rotates the key by which he reviews isn't shut out, and the key that he had before is his."""
    signer = Signer(role="reviewer", account=OWNER, public_key=KEY.public_key, datanet="py")
    town.economy.add_signer(signer, sign_signer(KEY, "reviewer", OWNER, "py")["signature"])
    new = SigningKey(b"n" * 32)
    town.economy.change_keys(sign_change(first_keys(KEY.public_key), [KEY, new], public_key=new.public_key))
    town.economy.check_sale([draw(town, OWNER, WITNESS)])
    assert town.economy._signers.keys_of(OWNER) == {OWN_CONTRIBUTOR.partition(":")[2]}
