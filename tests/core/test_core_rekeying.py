"""Whose keys are changed by whom: the rule, on values alone."""

from dataclasses import replace

import pytest

from openledger.core.errors import Conflict, Forbidden, InvalidInput
from openledger.core.rekeying import change_json, change_of, check_change, first_keys, keys_before, sign_change
from openledger.core.signing import SigningKey

FIRST, SECOND, RECOVERY, THIEF = (SigningKey(name * 32) for name in (b"1", b"2", b"r", b"t"))
ADA = FIRST.contributor_id
BEFORE = first_keys(FIRST.public_key)
NAMED = sign_change(BEFORE, [FIRST, RECOVERY], recovery_key=RECOVERY.public_key).keys()


def rotated(before=BEFORE, by=FIRST, new=SECOND):
    return sign_change(before, [by, new], public_key=new.public_key)


def code_of(raised, call):
    with pytest.raises(raised) as caught:
        call()
    return caught.value.code


def test_without_a_recovery_key_the_signing_key_replaces_itself():
    after = rotated().keys()
    assert (after.contributor_id, after.public_key, after.number) == (FIRST.contributor_id, SECOND.public_key, 1)


def test_with_one_the_signing_key_alone_changes_nothing():
    assert code_of(Forbidden, lambda: rotated(NAMED)) == "recovery_key_needed"
    forged = replace(rotated(), number=2, recovery_key=RECOVERY.public_key, by=FIRST.public_key)
    assert code_of(Forbidden, lambda: check_change(NAMED, forged)) == "recovery_key_needed"


def test_the_recovery_key_replaces_a_lost_key_without_it():
    assert rotated(NAMED, by=RECOVERY).keys().public_key == SECOND.public_key


def test_who_has_the_signing_key_cannot_take_the_recovery_keys_place():
    def takes():
        sign_change(NAMED, [FIRST, THIEF], recovery_key=THIEF.public_key)

    assert code_of(Forbidden, takes) == "recovery_key_needed"


def test_the_recovery_key_replaces_itself_and_is_never_dropped():
    change = sign_change(NAMED, [RECOVERY, THIEF], recovery_key=THIEF.public_key)
    assert change.keys().recovery_key == THIEF.public_key
    dropped = replace(rotated(NAMED, by=RECOVERY), recovery_key="")
    assert code_of(InvalidInput, lambda: check_change(NAMED, dropped)) == "invalid_key"


def test_a_new_key_signs_too_so_nobody_names_a_key_that_he_has_not_got():
    change = rotated()
    alone = replace(change, signatures={FIRST.public_key: change.signatures[FIRST.public_key]})
    assert code_of(InvalidInput, lambda: check_change(BEFORE, alone)) == "invalid_signature"


@pytest.mark.parametrize("field", ["contributor_id", "number", "replaces", "public_key", "recovery_key", "by"])
def test_every_field_is_under_the_signatures(field):
    change = rotated()
    other = {"number": 2, "contributor_id": THIEF.contributor_id}.get(field, THIEF.public_key)
    with pytest.raises((InvalidInput, Forbidden)) as caught:
        check_change(BEFORE, replace(change, **{field: other}))
    assert caught.value.code in ("invalid_signature", "recovery_key_needed")


def test_a_key_that_serves_or_served_somebody_is_taken():
    assert code_of(Conflict, lambda: check_change(BEFORE, rotated(), {SECOND.public_key})) == "key_in_use"


def test_one_key_is_not_both():
    assert code_of(InvalidInput, lambda: rotated(NAMED, by=RECOVERY, new=RECOVERY)) == "unchanged_keys"
    both = {"public_key": SECOND.public_key, "recovery_key": SECOND.public_key}
    assert code_of(InvalidInput, lambda: sign_change(BEFORE, [FIRST, SECOND], **both)) == "invalid_key"


def test_a_change_counts_once_and_in_its_place():
    change = rotated()
    assert keys_before(change, None, ADA) == BEFORE
    assert code_of(Conflict, lambda: keys_before(change, change.keys(), ADA)) == "stale_key_change"
    assert code_of(Conflict, lambda: keys_before(replace(change, number=2), None, ADA)) == "stale_key_change"


def test_the_first_change_is_of_the_key_that_the_contributor_is_named_after():
    stolen = replace(rotated(), contributor_id=THIEF.contributor_id)
    assert code_of(InvalidInput, lambda: keys_before(stolen, None, ADA)) == "invalid_key"


def test_a_key_that_came_by_a_change_gives_its_own_name_to_nobody():
    own = sign_change(first_keys(SECOND.public_key), [SECOND, THIEF], public_key=THIEF.public_key)
    assert keys_before(own, None, SECOND.contributor_id).public_key == SECOND.public_key
    assert code_of(Conflict, lambda: keys_before(own, None, ADA)) == "key_in_use"


def test_a_change_survives_json_and_malformed_json_is_refused():
    assert change_of(change_json(rotated())) == rotated()
    for values in ({}, {**change_json(rotated()), "number": True}, {**change_json(rotated()), "signatures": ["a"]}):
        assert code_of(InvalidInput, lambda values=values: change_of(values)) == "invalid_key_change"


def test_a_key_file_names_the_contributor_whose_key_it_replaced(tmp_path):
    made = SigningKey.load_or_create(tmp_path / "new.key", FIRST.contributor_id)
    again = SigningKey.load_or_create(tmp_path / "new.key")
    assert (again.public_key, again.contributor_id) == (made.public_key, FIRST.contributor_id)
    assert SigningKey.load_or_create(tmp_path / "own.key").contributor_id != FIRST.contributor_id
