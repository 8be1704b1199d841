"""A removal beyond its Datanet: the entry in the log, and the adapters that have learnt from the rows."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from house import Remote

from openledger.adapters.card import AdapterCard
from openledger.adapters.registry import AdapterRegistry
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Forbidden
from openledger.core.files import write_json_durably
from openledger.core.rekeying import first_keys, sign_change
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import AdapterTerms, Removal
from openledger.datanets.removal import sign_withdrawal, withdrawn
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.platform.removals import affected_adapters, record_removal

DIGEST = "ab" * 32


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    yield ledger
    ledger.close()


def removal() -> Removal:
    return withdrawn(sign_withdrawal(SigningKey(b"a" * 32), "docs", ["row_1", "row_2"], "1"), now_ms=5)


def adapter(
    registry: AdapterRegistry,
    folder: Path,
    name: str,
    rows: tuple[str, ...],
    *,
    sold: bool,
    digest: str = DIGEST,
    parents: tuple[str, ...] = (),
) -> None:
    card = AdapterCard(
        name=name, digest=digest, base_model="b", base_digest="c", datanet="docs", datanet_version=1, row_root="aa",
        rows_trained=rows, contributors={}, recipe={}, environment={}, code_version="1", initial_a="d", final_loss=1.0,
        parents=tuple((parent, "1") for parent in parents),
    )  # fmt: skip
    terms = AdapterTerms(
        adapter=name, adapter_digest=digest, datanet="docs", datanet_version=1, row_root="aa",
        owner_account="user:o", prompt_price_nano=1, completion_price_nano=1,
    )  # fmt: skip
    write_json_durably(folder / name / "card.json", asdict(card))
    registry.register(name, folder / name, digest, terms if sold else None)


async def own_key(public_key: str) -> str:
    """Of contributors who never changed any."""
    return contributor_id(public_key)


async def test_a_removal_is_logged_once_with_a_proof(ledger):
    transfer_id = await record_removal(Remote(ledger), removal(), own_key)
    assert await record_removal(Remote(ledger), removal(), own_key) == transfer_id == removal().removal_id
    ledger.audit()
    assert ledger.proof(transfer_id)


async def test_a_withdrawal_by_a_replaced_key_is_logged_no_more_and_one_that_is_there_is_told(ledger, tmp_path):
    """As from a registry that was restored from before the change: in the log it would stand for good."""
    own, new = SigningKey(b"a" * 32), SigningKey(b"n" * 32)
    economy = Economy(ledger, tmp_path, ManualClock())
    earlier = withdrawn(sign_withdrawal(own, "docs", ["row_9"], "0"), now_ms=4)
    transfer_id = await record_removal(Remote(ledger), earlier, Remote(economy).key_holder.remote)
    economy.change_keys(sign_change(first_keys(own.public_key), [own, new], public_key=new.public_key))
    with pytest.raises(Forbidden) as caught:
        await record_removal(Remote(ledger), removal(), Remote(economy).key_holder.remote)
    assert (caught.value.code, ledger.find(removal().removal_id)) == ("key_replaced", None)
    assert await record_removal(Remote(ledger), earlier, Remote(economy).key_holder.remote) == transfer_id
    ledger.audit()
    economy.close()


async def test_a_ledger_that_refuses_is_told(ledger):
    await record_removal(Remote(ledger), removal(), own_key)
    with pytest.raises(Conflict, match="exists_with_different_statement"):
        await record_removal(Remote(ledger), replace(removal(), row_ids=("row_1",)), own_key)


def test_adapters_trained_on_a_row_are_listed_with_what_was_made_of_it(tmp_path):
    registry = AdapterRegistry(tmp_path / "adapters")
    adapter(registry, tmp_path / "adapters", "served", ("row_1", "row_2", "row_3"), sold=True)
    adapter(registry, tmp_path / "adapters", "old", ("row_2",), sold=False)
    adapter(registry, tmp_path / "adapters", "other", ("row_9",), sold=True)
    (tmp_path / "indexes" / DIGEST[:24]).mkdir(parents=True)
    found = affected_adapters(registry, tmp_path / "indexes", removal().row_ids)
    assert [(one.name, one.served, one.num_trained) for one in found] == [("old", False, 1), ("served", True, 2)]
    assert found[1].made == (
        str((tmp_path / "adapters" / "served").resolve()),
        str(tmp_path / "indexes" / DIGEST[:24]),
    )


def test_an_adapter_that_is_measured_on_a_row_is_listed(tmp_path):
    registry = AdapterRegistry(tmp_path / "adapters")
    adapter(registry, tmp_path / "adapters", "served", ("row_9",), sold=True)
    rows = [["row_2", "ctr_a", 1, [1, 2]]]
    held_out = {"format": "openledger.held_out/1", "rows": rows}
    write_json_durably(tmp_path / "adapters" / "served" / "held_out.json", held_out)
    (found,) = affected_adapters(registry, tmp_path / "indexes", removal().row_ids)
    assert (found.num_trained, found.num_held_out) == (0, 1)
    assert any(path.endswith("held_out.json") for path in found.made)


def test_an_adapter_whose_ancestor_was_trained_on_a_row_is_listed(tmp_path):
    registry, root = AdapterRegistry(tmp_path / "adapters"), tmp_path / "adapters"
    first, second, merge, lost = (2 * digits * 16 for digits in ("a1", "b2", "c3", "d4"))
    adapter(registry, root, "first", ("row_1", "row_9"), sold=False, digest=first)
    adapter(registry, root, "second", ("row_2",), sold=True, digest=second, parents=(first,))
    adapter(registry, root, "merge", (), sold=True, digest=merge, parents=(second, lost))
    adapter(registry, root, "beside", ("row_9",), sold=True, digest=lost, parents=("e5" * 32,))
    found = affected_adapters(registry, tmp_path / "indexes", removal().row_ids)
    assert [(one.name, one.num_trained, one.without) for one in found] == [
        ("first", 1, ()), ("merge", 2, ()), ("second", 2, ())
    ]  # fmt: skip
