"""Ed25519: the vectors of RFC 8032, and a key file only its owner can read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signing import SigningKey, contributor_id, verify

# RFC 8032 section 7.1, test 2: seed, public key, message, signature.
SEED = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
MESSAGE = bytes.fromhex("72")
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_vector_of_the_rfc_signs_and_verifies():
    key = SigningKey(bytes.fromhex(SEED))
    assert (key.public_key, key.sign(MESSAGE)) == (PUBLIC, SIGNATURE)
    assert verify(PUBLIC, SIGNATURE, MESSAGE)


@given(st.integers(0, 511))
def test_a_signature_with_a_flipped_bit_fails(bit):
    flipped = bytearray.fromhex(SIGNATURE)
    flipped[bit // 8] ^= 1 << bit % 8
    assert not verify(PUBLIC, flipped.hex(), MESSAGE)


@given(st.binary(max_size=16))
def test_a_signature_holds_for_its_message_only(message):
    assert verify(PUBLIC, SIGNATURE, message) == (message == MESSAGE)


@pytest.mark.parametrize(("key", "signature"), [("", SIGNATURE), ("zz", SIGNATURE), (PUBLIC, ""), (PUBLIC, "zz")])
def test_malformed_hex_is_no_signature(key, signature):
    assert not verify(key, signature, MESSAGE)


def test_a_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path):
    path = tmp_path / "keys" / "ledger.key"
    made = SigningKey.load_or_create(path)
    assert SigningKey.load_or_create(path).public_key == made.public_key
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33])
def test_a_damaged_key_file_is_named(tmp_path, text):
    path = tmp_path / "ledger.key"
    path.write_text(text)
    with pytest.raises(Corrupt):
        SigningKey.load_or_create(path)


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(InvalidInput):
        SigningKey(b"short")


def test_contributors_are_told_apart_by_their_keys():
    ids = {contributor_id(SigningKey(bytes([number]) * 32).public_key) for number in range(10)}
    assert len(ids) == 10
    assert all(name.startswith("ctr_") for name in ids)
