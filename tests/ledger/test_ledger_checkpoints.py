"""Signed notes: the format of C2SP, and nothing but the key's own signature."""

import base64

import pytest

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signing import SigningKey
from openledger.ledger.checkpoints import (
    Checkpoint,
    open_checkpoint,
    parse_verification_key,
    sign_checkpoint,
    verification_key,
)

KEY = SigningKey(b"s" * 32)
POINT = Checkpoint(origin="openledger/test", size=17, root="ab" * 32)
VKEY = verification_key("openledger/test", KEY.public_key)
NOTE = sign_checkpoint(POINT, KEY)

# The example of golang.org/x/mod/sumdb/note: Go's checksum database and its published key.
GO_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"


def test_a_note_opens_to_what_was_signed():
    assert open_checkpoint(NOTE, VKEY) == POINT


def test_a_note_has_the_lines_of_the_format():
    origin, size, root, blank, signature, end = NOTE.split("\n")
    assert (origin, size, blank, end) == ("openledger/test", "17", "", "")
    assert base64.b64decode(root) == bytes.fromhex(POINT.root)
    assert signature.startswith("— openledger/test ")


def test_the_published_key_of_another_log_parses():
    name, key = parse_verification_key(GO_KEY)
    assert name == "sum.golang.org"
    assert verification_key(name, key) == GO_KEY


def test_every_changed_byte_of_a_note_is_refused():
    data = NOTE.encode()
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises((Corrupt, UnicodeDecodeError)):
                open_checkpoint(changed.decode(), VKEY)


def test_another_key_under_the_same_name_is_refused():
    other = verification_key("openledger/test", SigningKey(b"o" * 32).public_key)
    with pytest.raises(Corrupt) as caught:
        open_checkpoint(NOTE, other)
    assert caught.value.code == "wrong_key"


def test_a_signature_over_something_else_is_refused():
    other = sign_checkpoint(Checkpoint(origin=POINT.origin, size=18, root=POINT.root), KEY)
    mixed = NOTE.split("\n\n")[0] + "\n\n" + other.split("\n\n")[1]
    with pytest.raises(Corrupt) as caught:
        open_checkpoint(mixed, VKEY)
    assert caught.value.code == "wrong_signature"


@pytest.mark.parametrize("key", ["", "a+b", "openledger/test", VKEY[:-4], VKEY.replace("test", "tess"), "a+b+c+d"])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(InvalidInput) as caught:
        open_checkpoint(NOTE, key)
    assert caught.value.code == "invalid_key"
