"""Licences: what each asks, which change of one is refused, and rows that name their own."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Conflict, Forbidden
from openledger.core.signing import contributor_id
from openledger.core.values import RowDraft
from openledger.datanets.appeals import appeal_of
from openledger.datanets.datanets import Datanets
from openledger.datanets.licences import LICENCES, WITHDRAWN, keeps, may_train, row_keeps
from openledger.datanets.preparing import announced
from openledger.datanets.reading import read_drafts
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.row_schema import Column, RowSchema, own_licence
from openledger.datanets.seals import seal_of
from openledger.datanets.terms import Terms

OWNER = "acct_owner"
NOISE = RowDraft(prompt="What does pack.crc do?", completion="Xqzv wvkx zzqj kqvx jxqz wqkz vxjq.", source="s")


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    opened = open_datanets(tmp_path / "datanets")
    opened.set_terms("docs", Terms(licence="CC-BY-NC-4.0"), by=OWNER)
    yield opened
    opened.close()


def relicense(datanets: Datanets, licence: str) -> str:
    """The code of the refusal; empty where it is done."""
    before, refusal = datanets.terms("docs"), ""
    try:
        datanets.change_terms("docs", {"licence": licence}, OWNER)
    except Conflict as error:
        refusal = error.code
    assert datanets.terms("docs") == (before if refusal else replace(before, licence=licence))
    return refusal


def naming(licence: str, number: int = 0, name: str = "licence") -> RowDraft:
    return replace(sample_drafts(number + 1, "own")[number], extra=json.dumps({name: licence}, separators=(",", ":")))


class TestWhatALicenceKeeps:
    @pytest.mark.parametrize(
        ("given", "licence"),
        [
            ("CC0-1.0", "MIT"),
            ("MIT", "CC-BY-4.0"),
            ("CC-BY-4.0", "CC-BY-SA-4.0"),
            ("CC-BY-4.0", "LicenseRef-openledger-training"),
            ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"),
            ("CC-BY-SA-4.0", WITHDRAWN),
        ],
    )
    def test_is_what_asks_as_much(self, given: str, licence: str) -> None:
        assert keeps(given, licence)

    @pytest.mark.parametrize(
        ("given", "licence"),
        [
            ("CC-BY-NC-4.0", "MIT"),
            ("CC-BY-NC-4.0", "LicenseRef-openledger-training"),
            ("CC-BY-4.0", "CC0-1.0"),
            ("CC-BY-SA-4.0", "ODbL-1.0"),
            ("CC-BY-SA-4.0", "LicenseRef-openledger-training"),
            ("CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"),
            ("LicenseRef-openledger-training", "CC-BY-4.0"),
            (WITHDRAWN, "CC0-1.0"),
        ],
    )
    def test_is_nothing_that_asks_less_or_other_things(self, given: str, licence: str) -> None:
        assert not keeps(given, licence)

    @pytest.mark.parametrize("licence", [*LICENCES, WITHDRAWN])
    def test_is_itself(self, licence: str) -> None:
        assert keeps(licence, licence)

    def test_never_lets_be_trained_on_what_its_contributor_did_not(self) -> None:
        pairs = [(given, to) for given in LICENCES for to in LICENCES if keeps(given, to) and may_train(to)]
        assert pairs
        assert [given for given, _ in pairs if not may_train(given)] == []

    @pytest.mark.parametrize(
        ("own", "licence", "kept"),
        [
            ("cc-by-nc-4.0", "MIT", False),
            ("odc-by", "CC-BY-4.0", True),
            ("MIT AND Apache-2.0", "CC-BY-4.0", True),
            ("MIT AND CC-BY-NC-4.0", "CC-BY-4.0", False),
            ("ask my lawyer AND CC-BY-NC-4.0", "CC-BY-4.0", False),
            ("ask my lawyer AND MIT", "CC-BY-4.0", None),
            ("unknown", "CC-BY-4.0", None),
        ],
    )
    def test_is_asked_of_rows_by_the_names_that_they_use(self, own: str, licence: str, kept: bool | None) -> None:
        assert row_keeps(own, licence) is kept


class TestAChangeOfLicence:
    def test_that_asks_less_is_refused_while_rows_of_others_stand(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(3)))
        assert relicense(datanets, "MIT") == "licence_not_kept"
        assert relicense(datanets, "CC-BY-NC-SA-4.0") == ""

    def test_is_free_before_anybody_contributed(self, datanets: Datanets) -> None:
        assert relicense(datanets, "MIT") == ""

    def test_leaves_rows_the_licence_that_they_were_given_under(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(3)))
        relicense(datanets, "CC-BY-NC-SA-4.0")
        datanets.contribute(signed("bob", sample_drafts(3, "later")))
        assert relicense(datanets, "CC-BY-NC-4.0") == "licence_not_kept"  # bob's ask for the same licence
        taken_back(datanets, "bob")
        assert relicense(datanets, "MIT") == "licence_not_kept"  # ada's are still not commercial
        assert relicense(datanets, "CC-BY-NC-4.0") == ""

    def test_gets_no_wider_by_a_withdrawal_in_between(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(3)))
        assert relicense(datanets, WITHDRAWN) == ""
        assert relicense(datanets, "MIT") == "licence_not_kept"
        assert relicense(datanets, "CC-BY-NC-4.0") == ""

    def test_is_free_once_the_rows_were_taken_back(self, datanets: Datanets) -> None:
        datanets.contribute(signed("ada", sample_drafts(3)))
        taken_back(datanets, "ada")
        assert relicense(datanets, "MIT") == ""

    def test_is_free_for_the_owners_own_rows(self, datanets: Datanets) -> None:
        owner = f"contributor:{contributor_id(key_of('ada').public_key)}"
        datanets.create("own", "Of a contributor", owner)
        datanets.set_terms("own", Terms(licence="CC-BY-NC-4.0"), by=owner)
        datanets.contribute(signed("ada", sample_drafts(3), datanet="own"))
        assert datanets.change_terms("own", {"licence": "MIT"}, owner).licence == "MIT"

    def test_is_refused_for_what_the_owners_rows_name_themselves(self, datanets: Datanets) -> None:
        owner = f"contributor:{contributor_id(key_of('ada').public_key)}"
        datanets.create("own", "Of a contributor", owner)
        datanets.set_terms("own", Terms(licence="CC-BY-NC-4.0"), by=owner)
        datanets.contribute(signed("ada", [naming("cc-by-nc-4.0")], datanet="own"))
        with pytest.raises(Conflict, match=r"1 rows were given under cc-by-nc-4\.0"):
            datanets.change_terms("own", {"licence": "MIT"}, owner)

    def test_survives_a_restart(self, datanets: Datanets, tmp_path: Path) -> None:
        datanets.contribute(signed("ada", sample_drafts(3)))
        relicense(datanets, WITHDRAWN)
        datanets.close()
        again = open_datanets(tmp_path / "datanets")
        assert relicense(again, "MIT") == "licence_not_kept"
        again.close()

    def test_counts_a_row_that_is_appealed(self, datanets: Datanets) -> None:
        contribution = signed("ada", [NOISE])
        assert [verdict.outcome for verdict in datanets.contribute(contribution).verdicts] == ["reject"]
        datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a checksum"))
        assert relicense(datanets, "MIT") == "licence_not_kept"

    def test_ends_appeals_of_rows_that_it_would_not_keep(self, datanets: Datanets) -> None:
        contribution = signed("ada", [NOISE])
        datanets.contribute(contribution)
        assert relicense(datanets, "MIT") == ""
        with pytest.raises(Conflict) as caught:
            datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "it is a checksum"))
        assert caught.value.code == "licence_not_kept"


def taken_back(datanets: Datanets, name: str) -> None:
    own = contributor_id(key_of(name).public_key)
    number = datanets.publish("docs").number
    rows = [row.row_id for row in datanets.rows("docs", number) if row.contributor_id == own]
    datanets.withdraw(sign_withdrawal(key_of(name), "docs", rows, "1"))


class TestASeal:
    """Nobody's rows are given under a licence that came after they were promised."""

    SEALED = signed("ada", sample_drafts(2))

    @pytest.fixture
    def sealed(self, datanets: Datanets) -> Datanets:
        datanets.seal(seal_of(key_of("ada"), self.SEALED))
        return datanets

    def test_is_not_opened_under_a_licence_that_asks_less(self, sealed: Datanets) -> None:
        assert relicense(sealed, "MIT") == ""
        for call in (sealed.contribute, sealed.preview, lambda one: sealed.admit(announced(one))):
            with pytest.raises(Conflict) as caught:
                call(self.SEALED)
            assert (caught.value.code, sealed.stored_count("docs")) == ("licence_not_kept", 0)
        sealed.contribute(signed("ada", sample_drafts(2), nonce="another"))
        assert sealed.stored_count("docs") == 2

    def test_is_opened_under_the_licence_of_its_day_or_one_that_keeps_it(self, sealed: Datanets) -> None:
        relicense(sealed, "MIT")
        relicense(sealed, "CC-BY-NC-SA-4.0")
        assert len(sealed.contribute(self.SEALED).verdicts) == 2

    def test_that_was_opened_keeps_its_first_answer(self, sealed: Datanets) -> None:
        receipt = sealed.contribute(self.SEALED)
        taken_back(sealed, "ada")
        assert relicense(sealed, "MIT") == ""
        assert sealed.contribute(self.SEALED).contribution_id == receipt.contribution_id

    def test_of_before_licences_were_kept_with_it_is_opened(self, sealed: Datanets, tmp_path: Path) -> None:
        with sealed._registry._writing():
            sealed._registry._connection.execute("ALTER TABLE seals DROP COLUMN licence")
        sealed.close()
        again = open_datanets(tmp_path / "datanets")
        relicense(again, "MIT")
        assert len(again.contribute(self.SEALED).verdicts) == 2
        again.close()


class TestALicenceThatIsNotKnown:
    @pytest.fixture
    def reviewed(self, datanets: Datanets) -> Datanets:
        (verdict,) = datanets.contribute(signed("ada", [naming("ask my lawyer")])).verdicts
        datanets.review("docs", verdict.row_id, OWNER, accept=True)
        return datanets

    def test_is_kept_by_no_other_than_its_row_was_let_in_under(self, reviewed: Datanets) -> None:
        assert relicense(reviewed, "CC-BY-NC-SA-4.0") == "licence_not_kept"
        assert (relicense(reviewed, WITHDRAWN), relicense(reviewed, "CC-BY-NC-4.0")) == ("", "")

    def test_binds_nobody_once_its_row_was_taken_back(self, reviewed: Datanets) -> None:
        taken_back(reviewed, "ada")
        assert relicense(reviewed, "CC-BY-NC-SA-4.0") == ""


class TestAnAppealOfARowWithItsOwnLicence:
    def test_brings_in_nothing_that_the_datanets_does_not_keep(self, datanets: Datanets) -> None:
        contribution = signed("ada", [naming("cc-by-sa-4.0")])
        assert datanets.contribute(contribution).verdicts[0].reasons == ("wrong_licence",)
        with pytest.raises(Conflict) as caught:
            datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "mine to give"))
        assert (caught.value.code, datanets.held_appeals()) == ("licence_not_kept", {})

    def test_is_heard_where_it_is_kept(self, datanets: Datanets) -> None:
        noise = replace(NOISE, extra=naming("mit").extra)
        contribution = signed("ada", [noise])
        assert datanets.contribute(contribution).verdicts[0].outcome == "reject"
        assert datanets.hold_appeal(appeal_of(key_of("ada"), contribution, 0, "a checksum")).outcome == "reject"


class TestAWithdrawnLicence:
    def test_takes_no_row_not_even_the_owners(self, datanets: Datanets) -> None:
        relicense(datanets, WITHDRAWN)
        for call in (datanets.contribute, datanets.preview):
            with pytest.raises(Forbidden) as caught:
                call(signed("ada", sample_drafts(2)))
            assert (caught.value.code, caught.value.param) == ("licence_withdrawn", "licence")
        assert datanets.stored_count("docs") == 0

    def test_takes_none_that_was_sealed_before(self, datanets: Datanets) -> None:
        contribution = signed("ada", sample_drafts(2))
        datanets.seal(seal_of(key_of("ada"), contribution))
        relicense(datanets, WITHDRAWN)
        with pytest.raises(Forbidden, match="withdrawn"):
            datanets.contribute(contribution)
        relicense(datanets, "CC-BY-NC-4.0")
        assert len(datanets.contribute(contribution).verdicts) == 2

    def test_leaves_what_was_stored_its_first_answer(self, datanets: Datanets) -> None:
        contribution = signed("ada", sample_drafts(2))
        receipt, previewed = datanets.contribute(contribution), datanets.preview(contribution)
        relicense(datanets, WITHDRAWN)
        assert datanets.admit(announced(contribution)) is None
        assert (datanets.contribute(contribution), datanets.preview(contribution)) == (receipt, previewed)

    def test_is_told_before_anybody_works_at_new_rows(self, datanets: Datanets) -> None:
        relicense(datanets, WITHDRAWN)
        with pytest.raises(Forbidden, match="withdrawn"):
            datanets.admit(announced(signed("ada", sample_drafts(2))))

    def test_lets_rows_be_taken_back(self, datanets: Datanets) -> None:
        receipt = datanets.contribute(signed("ada", sample_drafts(2)))
        relicense(datanets, WITHDRAWN)
        datanets.withdraw(sign_withdrawal(key_of("ada"), "docs", [receipt.verdicts[0].row_id], "1"))
        assert datanets.stored_count("docs") == 1


class TestARowsOwnLicence:
    def test_is_held_against_the_datanets(self, datanets: Datanets) -> None:
        drafts = [naming(own, number) for number, own in enumerate(("CC-BY-NC-4.0", "cc-by-sa-4.0", "my own", "mit"))]
        said = [(one.outcome, one.reasons) for one in datanets.contribute(signed("ada", drafts)).verdicts]
        assert said == [
            ("accept", ()),
            ("reject", ("wrong_licence",)),
            ("review", ("unknown_licence",)),
            ("accept", ()),
        ]

    def test_is_asked_in_a_column_that_the_schema_declares(self, datanets: Datanets) -> None:
        schema = RowSchema(columns=(Column(name="license", type="string", required=False),))
        datanets.create("typed", "With a column", OWNER, schema)
        datanets.set_terms("typed", Terms(licence="MIT"), by=OWNER)
        drafts = [naming("CC-BY-NC-4.0", name="license"), naming("MIT", 1, name="license")]
        said = [one.reasons for one in datanets.contribute(signed("ada", drafts, datanet="typed")).verdicts]
        assert said == [("wrong_licence",), ()]
        assert "licence" not in schema.arrow().names

    @pytest.mark.parametrize(
        ("record", "own"),
        [
            ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
            ({"licence": " MIT "}, "MIT"),
            ({"license": ["mit", "apache-2.0"]}, "mit AND apache-2.0"),
            ({"licence": "MIT", "license": "CC-BY-NC-4.0"}, "MIT AND CC-BY-NC-4.0"),
            ({"licence": "MIT", "license": ["MIT", "odbl"]}, "MIT AND odbl"),
            ({"license": None}, ""),
            ({"license": ""}, ""),
            ({}, ""),
        ],
    )
    def test_is_read_from_records(self, tmp_path: Path, record: dict[str, object], own: str) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "Who?", "completion": "They who do it.", **record}))
        (draft,) = read_drafts(path)
        assert isinstance(draft, RowDraft)
        assert own_licence(draft) == own
        assert bool(draft.extra) == bool(own)

    @pytest.mark.parametrize(
        ("columns", "record", "own"),
        [
            (("license",), {"licence": "CC-BY-NC-4.0", "license": "mit"}, "CC-BY-NC-4.0 AND mit"),
            (("license",), {"licence": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0"),
            (("licence", "license"), {"licence": "CC-BY-NC-4.0", "license": "mit"}, "CC-BY-NC-4.0 AND mit"),
            (("license",), {}, "odbl"),
        ],
    )
    def test_is_read_whole_where_the_schema_declares_its_column(
        self, tmp_path: Path, columns: tuple[str, ...], record: dict[str, str], own: str
    ) -> None:
        schema = RowSchema(columns=tuple(Column(name=name, type="string", required=False) for name in columns))
        (tmp_path / "README.md").write_text("---\nlicense: odbl\n---\n")
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Who?", "completion": "They who do it.", **record}))
        (draft,) = read_drafts(tmp_path, schema)
        assert isinstance(draft, RowDraft)
        assert (own_licence(draft), schema.problems(draft)) == (own, [])

    def test_that_is_too_long_is_refused_with_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "Who?", "completion": "They who do it.", "license": "x" * 129}))
        (refused,) = read_drafts(path)
        assert not isinstance(refused, RowDraft)
        assert (refused.place, refused.code) == ("line 1", "wrong_type")

    def test_goes_along_into_the_export_and_back(self, datanets: Datanets, tmp_path: Path) -> None:
        datanets.contribute(signed("ada", [naming("mit"), sample_drafts(1)[0]]))
        datanets.publish("docs")
        datanets.export("docs", 1, tmp_path / "out")
        told = pq.read_table(tmp_path / "out" / "rows.parquet").to_pylist()
        assert {one["licence"] for one in told} == {"mit", None}
        again = [
            own_licence(one) for one in read_drafts(tmp_path / "out" / "rows.parquet") if isinstance(one, RowDraft)
        ]
        assert sorted(again) == ["", "mit"]
