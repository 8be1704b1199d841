"""The values that many rows are handed on in: what arrives in another process is what was sent."""

import pickle

import pytest
from ray import cloudpickle

from openledger.core.values import Contribution, ContributionReceipt, RowDraft, Verdict

CONTRIBUTION = Contribution(
    datanet="docs",
    contributor_id="ctr_a",
    public_key="ab",
    nonce="7",
    drafts=(
        RowDraft(prompt="What?", completion="That.", source="here", extra='{"year":1}'),
        RowDraft(prompt="Who?", completion="“Ada”\n\\"),
    ),
    content_root="cd",
    signature="ef",
)
RECEIPT = ContributionReceipt(
    contribution_id="ctb_a",
    datanet="docs",
    contributor_id="ctr_a",
    verdicts=(
        Verdict(row_id="row_a", ordinal=0, outcome="accept"),
        Verdict(row_id="row_b", ordinal=1, outcome="reject", reasons=("near_duplicate", "x"), duplicate_of="row_a"),
    ),
)


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("value", [CONTRIBUTION, RECEIPT], ids=lambda value: type(value).__name__)
def test_arrives_as_it_was_sent(value: object, dumps: object) -> None:
    arrived = pickle.loads(dumps(value))  # type: ignore[operator]
    assert arrived == value
    assert type(arrived) is type(value)
    assert [repr(one) for one in (arrived, value)] == [repr(value)] * 2


@pytest.mark.parametrize("value", [CONTRIBUTION, RECEIPT], ids=lambda value: type(value).__name__)
def test_its_rows_travel_as_plain_tuples(value: object) -> None:
    data = pickle.dumps(value)
    assert (b"RowDraft" in data, b"Verdict" in data) == (False, False)
