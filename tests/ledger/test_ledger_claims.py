"""Claims on a chain: OpenZeppelin's own package reads our tree and proves against it, and we against its."""

import random

import merkle_tree_package
import pytest
from hypothesis import given
from hypothesis import strategies as st
from settled_ledger import build, withdraw

from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.money import SUPPLY_NANO
from openledger.core.signing import SigningKey
from openledger.ledger import Ledger
from openledger.ledger.claims import WEI_PER_NANO, ClaimTree, checksummed, keccak_256, load_claims, plain, verify_claim
from openledger.ledger.payouts import claims_in, csv_of, payouts_in

addresses = st.binary(min_size=20, max_size=20).map(lambda data: "0x" + data.hex())
amounts = st.dictionaries(addresses, st.integers(1, SUPPLY_NANO), min_size=1, max_size=20)


@pytest.fixture(scope="session")
def package():
    folder = merkle_tree_package.install()
    if isinstance(folder, str):
        pytest.skip(folder)
    return folder


def payments(count):
    chance = random.Random(count)
    return {"0x" + chance.randbytes(20).hex(): chance.randint(1, SUPPLY_NANO) for _ in range(count)}


def as_values(amounts_nano):
    return [[address, str(amount * WEI_PER_NANO)] for address, amount in amounts_nano.items()]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100])
def test_their_package_makes_the_same_tree(package, count):
    script = "return StandardMerkleTree.of(input, ['address', 'uint256']).dump();"
    theirs = merkle_tree_package.run(package, script, as_values(payments(count)))
    ours = ClaimTree(payments(count)).dump()
    assert (theirs["tree"], theirs["format"], theirs["leafEncoding"]) == (
        ours["tree"],
        ours["format"],
        ours["leafEncoding"],
    )
    assert load_claims(theirs).root == theirs["tree"][0]


def test_their_package_loads_our_dump_and_verifies_our_proofs(package):
    tree = ClaimTree(payments(30))
    proofs = [[address, tree.proof(address)] for address in tree.amounts_nano]
    script = """
        const tree = StandardMerkleTree.load(input.dump);
        return input.proofs.map(([address, proof], i) =>
            tree.at(i)[0] === address
            && StandardMerkleTree.verify(input.root, ['address', 'uint256'], tree.at(i), proof)
            && !StandardMerkleTree.verify(input.root, ['address', 'uint256'], [address, '1'], proof));
    """
    value = {"dump": tree.dump(), "proofs": proofs, "root": tree.root}
    assert merkle_tree_package.run(package, script, value) == [True] * 30


def test_we_verify_the_proofs_of_their_package(package):
    script = """
        const tree = StandardMerkleTree.of(input, ['address', 'uint256']);
        return [tree.root, [...tree.entries()].map(([i]) => tree.getProof(i))];
    """
    root, proofs = merkle_tree_package.run(package, script, as_values(payments(30)))
    for (address, amount), proof in zip(payments(30).items(), proofs, strict=True):
        assert verify_claim(root, address, amount, proof)
        assert not verify_claim(root, address, amount - 1 or 2, proof)


def test_keccak_is_the_one_of_ethereum():
    assert keccak_256()(b"").hexdigest() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


@given(amounts)
def test_every_claim_is_proven_and_no_other(amounts_nano):
    tree = ClaimTree(amounts_nano)
    for address, amount in amounts_nano.items():
        assert verify_claim(tree.root, address, amount, tree.proof(address))
        assert not verify_claim(tree.root, address, amount % SUPPLY_NANO + 1, tree.proof(address))
    assert load_claims(tree.dump()).root == tree.root


def test_the_examples_of_eip_55():
    for address in ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"):
        assert checksummed(address.lower()) == address
        assert plain(address) == address.lower()
        with pytest.raises(InvalidInput):
            plain(address.replace("B", "b", 1))


@pytest.mark.parametrize(
    ("given_amounts", "code"),
    [
        ({}, "no_claims"),
        ({"0x00": 1}, "invalid_address"),
        ({"0x" + "ab" * 20: 1, "0x" + "AB" * 20: 1}, "address_twice"),
        ({"0x" + "ab" * 20: 0}, "invalid_amount"),
        ({"0x" + "ab" * 20: -1}, "invalid_amount"),
        ({"0x" + "ab" * 20: SUPPLY_NANO + 1}, "invalid_amount"),
    ],
)
def test_what_can_not_be_claimed_is_refused(given_amounts, code):
    with pytest.raises(InvalidInput) as caught:
        ClaimTree(given_amounts)
    assert caught.value.code == code


def test_a_changed_dump_is_refused():
    def changed(change):
        dump = ClaimTree(payments(5)).dump()
        change(dump)
        return dump

    for dump in (
        changed(lambda dump: dump["tree"].reverse()),
        changed(lambda dump: dump["values"][0]["value"].__setitem__(1, str(WEI_PER_NANO))),
        changed(lambda dump: dump["values"][0].update(treeIndex=0)),
        changed(lambda dump: dump.update(format="simple-v1")),
        changed(lambda dump: dump["values"].pop()),
        changed(lambda dump: dump["values"][0]["value"].__setitem__(1, "1")),
        changed(lambda dump: dump.pop("values")),
    ):
        with pytest.raises(Corrupt):
            load_claims(dump)


ONE, TWO = "0x" + "aB" * 20, "0x" + "cd" * 20


@pytest.fixture
def settled(path, clock):
    ledger = Ledger(path, clock, SigningKey(b"k" * 32), "openledger/test")
    build(ledger)
    yield ledger
    ledger.close()


def test_the_claims_of_a_round_are_what_left_the_accounts_for_it(settled, path, tmp_path):
    (paid, *_) = payouts_in(path)
    withdraw(settled, (paid.account, 1, ONE), ("user:a", 3, TWO), ("user:a", 4, ONE.lower()))
    settled.audit()
    settled.export(tmp_path / "export")
    for storage in (path, tmp_path / "export"):
        assert claims_in(storage, 1).tree.amounts_nano == {ONE.lower(): 5, TWO: 3}
        with pytest.raises(NotFound) as caught:
            claims_in(storage, 2)
        assert caught.value.code == "round_not_found"


def test_what_was_paid_and_not_withdrawn_is_no_claim(settled, path):
    assert payouts_in(path)
    with pytest.raises(NotFound):
        claims_in(path, 1)


def test_payouts_are_written_as_a_table(settled, path, tmp_path):
    settled.export(tmp_path / "export")
    payouts = payouts_in(path)
    assert payouts == payouts_in(tmp_path / "export")
    assert payouts_in(path, "another") == []
    assert csv_of(payouts).splitlines()[0] == "period,adapter,account,amount_nano,transfer_id,unit"
    assert len(csv_of(payouts).splitlines()) == 1 + len(payouts)
