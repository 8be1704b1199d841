"""A verdict names the row that a copy repeats to those alone who may know it, wherever the verdict is told and the
duplicate index is."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from datanet_samples import clock_of, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Forbidden
from openledger.core.signed import contribution_id
from openledger.core.values import PRIVATE_ROW, Contribution, ContributionReceipt, Verdict
from openledger.datanets.appeals import appeal_of
from openledger.datanets.datanets import Datanets
from openledger.datanets.disclosure import ANYBODY
from openledger.datanets.ingest import Ingest
from openledger.datanets.terms import Terms

ADA, EVE = key_of("ada").contributor_id, key_of("eve").contributor_id
ROWS = sample_drafts(4)
EDITED = [replace(one, completion=one.completion.replace(".", " indeed.")) for one in ROWS]
COPY = signed("eve", [*ROWS[:2], *EDITED[2:]])
REASONS = [("exact_duplicate",)] * 2 + [("near_duplicate",)] * 2


@pytest.fixture(params=[False, True], ids=["one index", "by shard"])
def datanets(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Datanets]:
    opened = open_datanets(tmp_path)
    opened.divide_duplicates(by_shard=request.param)
    yield opened
    opened.close()


@pytest.fixture
def originals(datanets: Datanets) -> list[str]:
    """Ids of Ada's rows in a Datanet on which nobody but its owner may train."""
    datanets.create("vault", "What is ours alone", "user:vault")
    datanets.set_terms("vault", Terms(train="private"), "user:vault")
    return [verdict.row_id for verdict in datanets.contribute(signed("ada", ROWS, datanet="vault")).verdicts]


def named(verdicts: tuple[Verdict, ...] | ContributionReceipt | None) -> list[str | None]:
    assert verdicts is not None
    told = verdicts.verdicts if isinstance(verdicts, ContributionReceipt) else verdicts
    assert [one.reasons for one in told] == REASONS
    return [one.duplicate_of for one in told]


def through_ingest(datanets: Datanets, contribution: Contribution) -> ContributionReceipt:
    async def sent() -> ContributionReceipt:
        arriving = Ingest(datanets, None, 0)  # type: ignore[arg-type]  # without workers nothing is prepared
        receipt = await arriving.contribute(contribution)
        arriving.close()
        return receipt

    return asyncio.run(sent())


TOLD: dict[str, Callable[[Datanets], tuple[Verdict, ...] | ContributionReceipt | None]] = {
    "the answer": lambda one: one.contribute(COPY),
    "the answer to the same again": lambda one: (one.contribute(COPY), one.contribute(COPY))[1],
    "the answer of many at once": lambda one: through_ingest(one, COPY),
    "their answer to the same again": lambda one: (one.contribute(COPY), through_ingest(one, COPY))[1],
    "a dry run": lambda one: one.preview(COPY),
    "a dry run of what was judged": lambda one: (one.contribute(COPY), one.preview(COPY))[1],
    "what anybody reads": lambda one: one.receipt("docs", one.contribute(COPY).contribution_id),
    "what the desk reads": lambda one: (one.contribute(COPY), one.judged(contribution_id(COPY)))[1],
    "what reviews and appeals left": lambda one: (one.contribute(COPY), one.standing(contribution_id(COPY)))[1],
}


@pytest.mark.parametrize("place", TOLD)
def test_a_private_datanets_row_is_not_named(datanets: Datanets, originals: list[str], place: str) -> None:
    assert named(TOLD[place](datanets)) == [PRIVATE_ROW] * 4


@pytest.mark.parametrize("place", TOLD)
def test_a_row_of_a_datanet_that_is_open_is_named(datanets: Datanets, originals: list[str], place: str) -> None:
    datanets.set_terms("vault", Terms(train="open"), "user:vault")
    assert named(TOLD[place](datanets)) == originals


def test_nor_is_a_row_of_one_that_is_trained_on_by_request(datanets: Datanets, originals: list[str]) -> None:
    datanets.set_terms("vault", Terms(train="request"), "user:vault")
    assert named(datanets.contribute(COPY)) == [PRIVATE_ROW] * 4
    datanets.request("vault", EVE, "train")
    assert named(datanets.contribute(COPY)) == [PRIVATE_ROW] * 4


@pytest.mark.parametrize("party", [EVE, f"contributor:{EVE}"])
@pytest.mark.parametrize("action", ["train", "contribute"])
def test_whom_the_owner_has_let_in_is_told_for_as_long(
    datanets: Datanets, originals: list[str], party: str, action: str
) -> None:
    datanets.approve("vault", party, action, "user:vault", clock_of(datanets).now_ms() + 1_000)  # type: ignore[arg-type]
    assert named(datanets.contribute(COPY)) == originals
    clock_of(datanets).advance(1_001)
    assert named(datanets.contribute(COPY)) == [PRIVATE_ROW] * 4
    datanets.approve("vault", party, action, "user:vault")  # type: ignore[arg-type]
    assert named(datanets.contribute(COPY)) == originals
    datanets.revoke("vault", party, action, "user:vault")  # type: ignore[arg-type]
    assert named(datanets.contribute(COPY)) == [PRIVATE_ROW] * 4


def test_ones_own_row_is_named_wherever_it_stands(datanets: Datanets, originals: list[str]) -> None:
    assert named(datanets.contribute(signed("ada", COPY.drafts))) == originals


@pytest.mark.parametrize(
    ("reader", "may"),
    [
        (ANYBODY, False), (EVE, False), ("user:vault", True), (ADA, True), (f"contributor:{ADA}", True),
        ("user:else", False), ("acct_owner", False),
    ],
)  # fmt: skip
def test_the_owner_of_the_original_finds_it(datanets: Datanets, originals: list[str], reader: str, may: bool) -> None:
    identifier = datanets.contribute(COPY).contribution_id
    assert named(datanets.receipt("docs", identifier, reader)) == (originals if may else [PRIVATE_ROW] * 4)


def test_a_row_of_the_same_contribution_is_named_also_where_it_is_private(
    datanets: Datanets, originals: list[str]
) -> None:
    sent = signed("bob", [*sample_drafts(1, "twice"), *sample_drafts(1, "twice")], datanet="vault")
    previewed = datanets.preview(sent)
    receipt = datanets.contribute(sent)
    assert previewed[1].duplicate_of == receipt.verdicts[1].duplicate_of == receipt.verdicts[0].row_id
    assert datanets.receipt("vault", receipt.contribution_id).verdicts == receipt.verdicts


def test_what_was_found_stays_known_to_the_house_after_a_restart(
    datanets: Datanets, originals: list[str], tmp_path: Path
) -> None:
    identifier = datanets.contribute(COPY).contribution_id
    datanets.close()
    again = open_datanets(tmp_path)
    assert named(again.receipt("docs", identifier)) == [PRIVATE_ROW] * 4
    assert named(again.receipt("docs", identifier, "user:vault")) == originals
    again.close()


class TestAnAppeal:
    def test_finds_whose_row_it_is_and_leaves_it_out_of_what_the_log_is_told(
        self, datanets: Datanets, originals: list[str]
    ) -> None:
        datanets.contribute(COPY)
        appeal = appeal_of(key_of("eve"), COPY, 0, "it is mine")
        for judged in (datanets.hold_appeal(appeal), datanets.hold_appeal(appeal)):
            assert (judged.reasons, judged.duplicate_of, judged.rival) == (REASONS[0], PRIVATE_ROW, "")
        datanets.set_terms("vault", Terms(train="open"), "user:vault")
        judged = datanets.hold_appeal(appeal)
        assert (judged.duplicate_of, judged.rival) == (originals[0], ADA)

    @pytest.mark.parametrize(
        ("account", "signer", "may"),
        [
            ("user:one", "bob", True), (f"contributor:{ADA}", "bob", False), ("user:one", "ada", False),
            (f"contributor:{EVE}", "bob", True),
        ],
    )  # fmt: skip
    def test_is_not_decided_by_whoever_has_the_original(
        self, datanets: Datanets, originals: list[str], account: str, signer: str, may: bool
    ) -> None:
        datanets.contribute(COPY)
        appeal = appeal_of(key_of("eve"), COPY, 0, "it is mine")
        datanets.hold_appeal(appeal)
        given = appeal.row_id, account, key_of(signer).public_key
        if may:
            datanets.check_decider(*given)
            return
        with pytest.raises(Forbidden) as caught:
            datanets.check_decider(*given)
        assert caught.value.code == "not_a_second_party"
        assert originals[0] not in caught.value.message
        datanets.close_appeal(appeal.row_id, "upheld")
        with pytest.raises(Forbidden):
            datanets.check_decider(*given)

    def test_of_what_is_no_copy_or_was_never_held_is_anybodys_to_decide(self, datanets: Datanets) -> None:
        datanets.check_decider("row_9", f"contributor:{ADA}", key_of("ada").public_key)
