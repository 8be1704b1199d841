"""The leaderboard: counts, velocity and whether contributors come back."""

import pytest
from datanet_samples import clock_of, key_of, sample_drafts, signed

from openledger.core.errors import NotFound, TooLarge
from openledger.core.signing import contributor_id
from openledger.core.values import RowDraft
from openledger.datanets.datanets import Datanets
from openledger.datanets.feedback import MAX_RATERS, Feedback
from openledger.datanets.leaderboard import DAY_MS, KEPT_MS, WEEK_MS, cohorts
from openledger.datanets.removal import sign_withdrawal

ADA, BOB = (contributor_id(key_of(name).public_key) for name in ("ada", "bob"))


def test_an_empty_datanet_has_an_empty_one(datanets: Datanets) -> None:
    assert datanets.leaderboard("docs").contributors == ()


def test_rows_are_counted_by_outcome_and_most_accepted_first(datanets: Datanets) -> None:
    first = datanets.contribute(signed("bob", sample_drafts(3)))
    datanets.contribute(signed("ada", [*sample_drafts(2), *sample_drafts(5, "mail")]))
    datanets.withdraw(sign_withdrawal(key_of("bob"), "docs", [first.verdicts[0].row_id], "1"))
    ada, bob = datanets.leaderboard("docs").contributors
    assert (ada.contributor_id, ada.accepted, ada.rejected, ada.duplicates) == (ADA, 5, 2, 2)
    assert (bob.name, bob.accepted, bob.removed, bob.duplicates) == ("bob", 2, 1, 0)


def test_velocity_counts_the_last_day_and_the_last_week(datanets: Datanets) -> None:
    datanets.contribute(signed("ada", sample_drafts(2)))
    began_ms = clock_of(datanets).now_ms()
    clock_of(datanets).advance(3 * DAY_MS)
    datanets.contribute(signed("ada", sample_drafts(4, "mail")))
    (ada,) = datanets.leaderboard("docs").contributors
    assert (ada.rows_a_day, ada.rows_a_week, ada.first_ms, ada.last_ms - began_ms) == (4, 6, began_ms, 3 * DAY_MS)
    clock_of(datanets).advance(5 * DAY_MS)
    (ada,) = datanets.leaderboard("docs").contributors
    assert (ada.rows_a_day, ada.rows_a_week, ada.weeks_active in (1, 2)) == (0, 4, True)


def test_it_is_read_once_a_minute_however_often_it_is_asked_for(datanets: Datanets) -> None:
    datanets.contribute(signed("ada", sample_drafts(2)))
    first = datanets.leaderboard("docs")
    datanets.contribute(signed("bob", sample_drafts(2, "mail")))
    assert datanets.leaderboard("docs") is first
    clock_of(datanets).advance(KEPT_MS)
    assert {one.contributor_id for one in datanets.leaderboard("docs").contributors} == {ADA, BOB}


def test_a_page_has_a_few_of_them_and_the_sums_of_all(datanets: Datanets) -> None:
    for name, number in (("ada", 4), ("bob", 2), ("eve", 1)):
        datanets.contribute(signed(name, sample_drafts(number, name)))
    first = datanets.leaderboard_page("docs", "", 1)
    second = datanets.leaderboard_page("docs", ADA, 5)
    assert [(page.first, [one.name for one in page.contributors]) for page in (first, second)] == [
        (0, ["ada"]),
        (1, ["bob", "eve"]),
    ]
    assert {(page.num_contributors, page.rows_a_week, page.duplicates) for page in (first, second)} == {(3, 7, 0)}
    assert first.cohorts == datanets.leaderboard("docs").cohorts
    with pytest.raises(NotFound) as caught:
        datanets.leaderboard_page("docs", "ctr_nobody", 1)
    assert caught.value.code == "unknown_contributor"


def test_reviewers_are_counted_with_it_once_a_minute(datanets: Datanets) -> None:
    mail = [
        RowDraft(prompt=f"Whom do I ask about {what}?", completion=f"Write to {who}@engines.org about the {what}.")
        for who, what in (("ada.lovelace", "cards"), ("charles.b", "wheels of brass"))
    ]
    receipt = datanets.contribute(signed("bob", mail))
    for number, verdict in enumerate(receipt.verdicts):
        datanets.review("docs", verdict.row_id, "acct_owner", accept=True)
        assert datanets.leaderboard_page("docs", "", 1).reviewers == {"acct_owner": 1}, number
    clock_of(datanets).advance(KEPT_MS)
    page = datanets.leaderboard_page("docs", "", 1)
    assert page.reviewers == {one.reviewer: one.num_reviews for one in datanets.reviewers("docs")} == {"acct_owner": 2}


def test_an_answer_is_rated_by_so_many_contributors_and_no_more(datanets: Datanets) -> None:
    def rating(number: int) -> Feedback:
        key = key_of(f"rater {number}")
        return Feedback(
            answer_id="ans_1", contributor_id=contributor_id(key.public_key), kind="rating", datanet="docs",
            public_key=key.public_key, signature="ab", rating=4,
        )  # fmt: skip

    for number in range(MAX_RATERS):
        datanets.add_feedback(rating(number))
    with pytest.raises(TooLarge) as caught:
        datanets.add_feedback(rating(MAX_RATERS))
    assert caught.value.code == "too_many_ratings"
    refused = rating(MAX_RATERS).contributor_id
    assert refused not in {one.contributor_id for one in datanets.contributors()}
    datanets.add_feedback(rating(0))
    assert len(datanets.feedback("ans_1")) == MAX_RATERS


def test_cohorts_follow_who_began_together() -> None:
    times = {"a": {0, 1, 2 * WEEK_MS}, "b": {5}, "c": {WEEK_MS}}
    first, second = cohorts(times, 2 * WEEK_MS + 7)
    assert (first.week_ms, first.active) == (0, (2, 0, 1))
    assert (second.week_ms, second.active) == (WEEK_MS, (1, 0))


def test_feedback_is_counted_for_whoever_gave_it(datanets: Datanets) -> None:
    datanets.contribute(signed("bob", sample_drafts(1)))
    given = Feedback(
        answer_id="ans_1", contributor_id=BOB, kind="rating", datanet="docs", public_key=key_of("bob").public_key,
        signature="ab", rating=4,
    )  # fmt: skip
    for _ in range(2):
        datanets.add_feedback(given)
    assert datanets.leaderboard("docs").contributors[0].feedback == {"rating": 1}
    assert datanets.feedback("ans_1") == [given]
