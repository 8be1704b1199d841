"""The error tree: each kind has its own status and exit code, and crosses processes whole."""

import pickle

import pytest

from openledger.core import errors
from openledger.core.errors import InvariantBroken, OpenLedgerError, invariant

KINDS = OpenLedgerError.__subclasses__()


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling_with_all_its_parts(kind):
    error = pickle.loads(pickle.dumps(kind("what", code="why", param="where", fix="how")))
    assert type(error) is kind
    assert (error.message, error.code, error.param, error.fix) == ("what", "why", "where", "how")


def test_every_kind_has_its_own_exit_code_and_default_code():
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS) == 11
    assert len({kind.default_code for kind in KINDS}) == len(KINDS)
    assert all(400 <= kind.http_status < 600 and kind.exit_code for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_in_the_docstring_is_the_tree(kind):
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in line)
    assert str(kind.http_status) in line
    assert f"exit {kind.exit_code}" in line
    assert kind.__bases__[1].__name__ in line


def test_an_error_prints_its_message_and_tells_the_rest_as_a_dict():
    error = errors.Conflict("used before", param="key")
    assert str(error) == "used before"
    assert error.to_dict() == {
        "type": "conflict",
        "code": "conflict",
        "message": "used before",
        "param": "key",
        "fix": None,
    }


def test_asking_too_often_says_when_to_ask_again_also_across_processes():
    error = pickle.loads(pickle.dumps(errors.TooManyRequests("later", retry_after_s=7)))
    assert error.retry_after_s == 7


def test_an_invariant_raises_only_when_it_is_broken():
    invariant(True, "fine")
    with pytest.raises(InvariantBroken, match="not fine"):
        invariant(False, "not fine")
