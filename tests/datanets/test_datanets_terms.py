"""Who may contribute and train, on which licence, and how much a day: asked where rows are stored and read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import clock_of, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Forbidden, InvalidInput, NotFound, TooLarge, TooManyRequests
from openledger.core.signing import contributor_id
from openledger.core.values import Row
from openledger.datanets import terms as terms_of_datanets
from openledger.datanets.bulk import read_part
from openledger.datanets.datanets import Datanets
from openledger.datanets.preparing import announced
from openledger.datanets.rows import rows_of
from openledger.datanets.terms import Terms

OWNER, DAY_MS = "acct_owner", 24 * 60 * 60 * 1000
ADA = contributor_id(key_of("ada").public_key)


def training_rows(datanets: Datanets, name: str, number: int, party: str) -> list[Row]:
    """As training reads them."""
    tables = [table for part in datanets.bulk_parts(name, number, party) for table in read_part(part)]
    return sorted((row for table in tables for row in rows_of(table)), key=lambda row: row.row_id)


class TestTerms:
    def test_a_datanet_is_open_until_its_owner_says_otherwise(self, datanets: Datanets) -> None:
        assert datanets.terms("docs") == Terms()

    def test_they_are_kept(self, datanets: Datanets, tmp_path: Path) -> None:
        terms = Terms(description="# Docs", tags=("python",), licence="CC-BY-4.0", train="request", max_rows_a_day=5)
        datanets.set_terms("docs", terms, by=OWNER)
        datanets.close()
        again = open_datanets(tmp_path)
        assert again.terms("docs") == terms
        again.close()

    def test_the_owner_alone_sets_them(self, datanets: Datanets) -> None:
        with pytest.raises(Forbidden) as caught:
            datanets.set_terms("docs", Terms(train="private"), by="acct_eve")
        assert caught.value.code == "not_the_owner"
        assert datanets.terms("docs") == Terms()

    @pytest.mark.parametrize(
        "change",
        [{"licence": "Mine-1.0"}, {"contribute": "closed"}, {"train": "never"}, {"tags": ("",)},
         {"max_rows_a_day": -1}, {"max_rows_an_hour": -1}, {"description": "x" * 20_001}],
    )  # fmt: skip
    def test_terms_that_cannot_be_are_refused_by_name(self, change: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput) as caught:
            Terms(**change)
        assert (caught.value.code, caught.value.param) == ("invalid_terms", next(iter(change)))


class TestContributing:
    @pytest.mark.parametrize("access", ["approval", "invited"])
    def test_who_was_not_approved_is_refused_and_nothing_is_stored(self, datanets: Datanets, access: str) -> None:
        datanets.set_terms("docs", Terms(contribute=access), by=OWNER)
        for call in (datanets.contribute, datanets.preview):
            with pytest.raises(Forbidden) as caught:
                call(signed("ada", sample_drafts(2)))
            assert caught.value.code == "not_permitted"
        assert datanets.stored_count("docs") == 0

    def test_no_more_requests_wait_than_an_owner_can_read(
        self, datanets: Datanets, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(terms_of_datanets, "MAX_OPEN_REQUESTS", 2)
        for party in ("ctr_1", "ctr_2", "ctr_2"):
            datanets.request("docs", party, "contribute")
        with pytest.raises(TooLarge) as caught:
            datanets.request("docs", "ctr_3", "contribute")
        assert caught.value.code == "too_many_requests_open"
        datanets.approve("docs", "ctr_1", "contribute", by=OWNER)
        assert datanets.request("docs", "ctr_3", "contribute").state == "requested"

    def test_a_request_alone_opens_nothing_and_an_approval_does(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(contribute="approval"), by=OWNER)
        assert datanets.request("docs", ADA, "contribute").state == "requested"
        with pytest.raises(Forbidden):
            datanets.contribute(signed("ada", sample_drafts(2)))
        datanets.approve("docs", ADA, "contribute", by=OWNER)
        assert datanets.request("docs", ADA, "contribute").state == "approved"
        datanets.contribute(signed("ada", sample_drafts(2)))
        assert datanets.stored_count("docs") == 2

    def test_who_was_revoked_is_refused_everywhere_and_cannot_ask_it_away(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(2)))
        datanets.revoke("docs", ADA, "contribute", by=OWNER)
        assert datanets.request("docs", ADA, "contribute").state == "revoked"
        with pytest.raises(Forbidden):
            datanets.contribute(signed("ada", sample_drafts(2, "mail")))
        assert datanets.stored_count("docs") == 2

    @pytest.mark.parametrize(("party", "expires_ms", "code"), [(ADA, 1, "invalid_expiry"), ("", 0, "invalid_text")])
    def test_an_approval_that_lets_nobody_in_is_refused(
        self, datanets: Datanets, party: str, expires_ms: int, code: str
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            datanets.approve("docs", party, "contribute", by=OWNER, expires_ms=expires_ms)
        assert (caught.value.code, datanets.permissions("docs")) == (code, [])

    def test_the_owner_alone_approves(self, datanets: Datanets) -> None:
        with pytest.raises(Forbidden) as caught:
            datanets.approve("docs", ADA, "contribute", by=ADA)
        assert caught.value.code == "not_the_owner"
        assert datanets.permissions("docs") == []


class TestQuota:
    def test_more_rows_a_day_than_allowed_are_refused_whole(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(max_rows_a_day=5), by=OWNER)
        first = datanets.contribute(signed("ada", sample_drafts(4)))
        with pytest.raises(TooLarge) as caught:
            datanets.contribute(signed("ada", sample_drafts(2, "mail")))
        assert (caught.value.code, "send 1 rows" in str(caught.value.fix)) == ("quota_exceeded", True)
        assert datanets.contribute(signed("ada", sample_drafts(4))) == first, "a retry is no new row"
        datanets.contribute(signed("bob", sample_drafts(2, "mail")))
        clock_of(datanets).advance(DAY_MS + 1)
        datanets.contribute(signed("ada", sample_drafts(5, "other")))
        assert datanets.stored_count("docs") == 11

    def test_more_rows_an_hour_than_allowed_come_when_there_is_room_again(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(max_rows_an_hour=5), by=OWNER)
        first = datanets.contribute(signed("ada", sample_drafts(3)))
        clock_of(datanets).advance(10 * 60_000)
        datanets.contribute(signed("ada", sample_drafts(2, "mail")))
        wanted = signed("ada", sample_drafts(3, "other"))
        with pytest.raises(TooManyRequests) as caught:
            datanets.contribute(wanted)
        assert (caught.value.code, caught.value.retry_after_s) == ("rate_exceeded", 50 * 60)
        assert datanets.contribute(signed("ada", sample_drafts(3))) == first, "a retry is no new row"
        datanets.contribute(signed("bob", sample_drafts(5, "more")))
        clock_of(datanets).advance(caught.value.retry_after_s * 1000)
        assert [one.outcome for one in datanets.contribute(wanted).verdicts] == ["accept"] * 3

    def test_what_an_hour_never_takes_is_told_so(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(max_rows_an_hour=5), by=OWNER)
        with pytest.raises(TooLarge) as caught:
            datanets.admit(announced(signed("ada", sample_drafts(6))))
        assert (caught.value.code, "at most 5 rows" in str(caught.value.fix)) == ("quota_exceeded", True)
        assert datanets.stored_count("docs") == 0


class TestAdmission:
    """Whether a contribution may come, and by which rules it is prepared, before anybody works at its rows."""

    def test_gives_the_rules_of_the_datanet(self, datanets: Datanets) -> None:
        datanets.change_terms("docs", {"languages": ["en"], "only_languages": True}, OWNER)
        assert datanets.admit(announced(signed("ada", sample_drafts(2)))) == datanets.rules("docs")

    def test_refuses_a_stranger(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(contribute="invited"), by=OWNER)
        with pytest.raises(Forbidden) as caught:
            datanets.admit(announced(signed("eve", sample_drafts(2))))
        assert caught.value.code == "not_permitted"

    def test_refuses_more_rows_than_a_day_takes(self, datanets: Datanets) -> None:
        datanets.set_terms("docs", Terms(max_rows_a_day=5), by=OWNER)
        first = signed("ada", sample_drafts(4))
        datanets.contribute(first)
        with pytest.raises(TooLarge) as caught:
            datanets.admit(announced(signed("ada", sample_drafts(2, "mail"))))
        assert caught.value.code == "quota_exceeded"
        assert datanets.admit(announced(first)) is None, "it was judged: a retry needs no rules"

    def test_refuses_a_key_that_is_another_contributors(self, datanets: Datanets) -> None:
        forged = replace(announced(signed("eve", sample_drafts(2))), contributor_id=ADA)
        with pytest.raises(InvalidInput) as caught:
            datanets.admit(forged)
        assert caught.value.code == "invalid_signature"

    def test_of_an_unknown_datanet_is_not_found(self, datanets: Datanets) -> None:
        with pytest.raises(NotFound):
            datanets.admit(announced(signed("ada", sample_drafts(2), datanet="nowhere")))


class TestTraining:
    @pytest.fixture
    def published(self, datanets: Datanets) -> Datanets:
        datanets.set_terms("docs", Terms(licence="CC-BY-4.0"), by=OWNER)
        datanets.contribute(signed("ada", sample_drafts(4)))
        datanets.publish("docs")
        return datanets

    def test_an_open_datanet_is_anybodys(self, published: Datanets) -> None:
        assert training_rows(published, "docs", 1, "user:lab") == published.rows("docs", 1)

    @pytest.mark.parametrize("access", ["request", "private"])
    def test_another_is_its_owners_and_of_who_was_approved_until_it_expires(
        self, published: Datanets, access: str
    ) -> None:
        published.set_terms("docs", Terms(licence="CC-BY-4.0", train=access), by=OWNER)
        assert len(training_rows(published, "docs", 1, OWNER)) == 4
        with pytest.raises(Forbidden) as caught:
            training_rows(published, "docs", 1, "user:lab")
        assert caught.value.code == "not_permitted"
        now = clock_of(published).now_ms()
        published.approve("docs", "user:lab", "train", by=OWNER, expires_ms=now + 1_000)
        assert len(training_rows(published, "docs", 1, "user:lab")) == 4
        clock_of(published).advance(1_000)
        with pytest.raises(Forbidden):
            training_rows(published, "docs", 1, "user:lab")

    @pytest.mark.parametrize(
        ("licence", "code"), [("withdrawn", "licence_withdrawn"), ("CC-BY-NC-4.0", "licence_forbids")]
    )
    def test_a_licence_binds_the_owner_too(self, published: Datanets, licence: str, code: str) -> None:
        published.set_terms("docs", Terms(licence=licence), by=OWNER)
        with pytest.raises(Forbidden) as caught:
            training_rows(published, "docs", 1, OWNER)
        assert caught.value.code == code

    def test_an_unknown_datanet_is_not_found(self, published: Datanets) -> None:
        with pytest.raises(NotFound):
            training_rows(published, "poems", 1, OWNER)
