"""Contributions prepared by other processes: the same verdicts, in the same order, whatever becomes of the workers."""

import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import Copier, key_of, open_datanets, sample_drafts, signed

from openledger.core.errors import Conflict, InvalidInput, NotFound, OpenLedgerError, Unavailable
from openledger.core.values import Contribution, ContributionReceipt, RowDraft
from openledger.datanets import datanets as datanets_module
from openledger.datanets.gate import Rules
from openledger.datanets.ingest import gate_workers, ingest
from openledger.datanets.preparing import Prepared, prepare
from openledger.datanets.row_schema import Column, RowSchema


class Inline(Executor):
    """Prepares at once, and sends what it found through pickle, as to another process."""

    def __init__(self) -> None:
        self.prepared: list[Prepared] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self.prepared.append(pickle.loads(pickle.dumps(fn(*args, **kwargs))))
            future.set_result(self.prepared[-1])
        except OpenLedgerError as error:
            future.set_exception(error)
        return future


def mixed() -> list[Contribution]:
    """Honest rows, exact and edited copies of them by others, noise, and one contribution that comes twice."""
    honest = sample_drafts(40)
    words = sorted({word for draft in honest for word in draft.completion.split()})
    copier = Copier(1, words)
    bad = [RowDraft(prompt="What?", completion=text) for text in ("", "no no", "a\x00b c d e", "xkcd qqq zzzz vvvv")]
    mail = RowDraft(prompt="Whom do I ask?", completion="Write to ada.lovelace@engines.org about the archive of cards.")
    first, copies = signed("ada", honest), signed("bob", [*honest[:5], *map(copier.copy, honest[5:15])])
    return [first, copies, signed("eve", [*bad, mail, *honest[15:20]]), first, signed("eve", sample_drafts(5, "new"))]


def outcomes(folder: Path, contributions: list[Contribution], workers: Executor) -> list[Any]:
    datanets = open_datanets(folder, 2)
    found = list(ingest(datanets, contributions, workers))
    datanets.close()
    return found


class TestIngest:
    def test_other_processes_change_no_verdict_no_reason_and_no_order(self, tmp_path: Path) -> None:
        alone = open_datanets(tmp_path / "alone", 2)
        expected = [alone.contribute(contribution) for contribution in mixed()]
        with gate_workers(2) as workers:
            assert outcomes(tmp_path / "many", mixed(), workers) == expected
        reasons = {reason for receipt in expected for verdict in receipt.verdicts for reason in verdict.reasons}
        assert {"empty", "noise", "invalid_text", "personal_data", "exact_duplicate", "near_duplicate"} <= reasons

    def test_what_a_worker_found_is_what_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datanets_module, "judge", None)
        assert all(isinstance(one, ContributionReceipt) for one in outcomes(tmp_path, mixed(), Inline()))

    def test_a_refused_contribution_keeps_its_position_and_the_others_go_on(self, tmp_path: Path) -> None:
        sent = mixed()[:2]
        forged = replace(sent[0], signature=sent[1].signature)
        elsewhere = signed("ada", sample_drafts(2), datanet="nowhere")
        found = outcomes(tmp_path, [sent[0], forged, elsewhere, sent[1]], Inline())
        assert [type(one) for one in found] == [ContributionReceipt, InvalidInput, NotFound, ContributionReceipt]

    def test_a_worker_that_dies_costs_no_contribution(self, tmp_path: Path) -> None:
        def killing(workers: Any) -> Iterator[Contribution]:
            for number in range(6):
                if number == 3:
                    os.kill(next(iter(workers._processes)), signal.SIGKILL)
                yield signed("ada", sample_drafts(5, f"subject-{number}"), str(number))

        datanets = open_datanets(tmp_path, 1)
        with gate_workers(1) as workers:
            found = list(ingest(datanets, killing(workers), workers))
        assert [{verdict.outcome for verdict in one.verdicts} for one in found] == [{"accept"}] * 6
        assert datanets.stored_count("docs") == 30

    def test_rows_that_a_shard_could_not_take_are_told_and_can_be_sent_again(self, tmp_path: Path) -> None:
        datanets, sent = open_datanets(tmp_path, 1), [signed("ada", sample_drafts(3, s), s) for s in ("a", "b", "c")]
        (shard,) = datanets._layout._shards
        append, failing = shard.append, iter([None, Unavailable("full", code="storage_unavailable"), None])

        def once_full(*arguments: Any) -> None:
            if (error := next(failing, None)) is not None:
                raise error
            append(*arguments)

        shard.append = once_full
        found = list(ingest(datanets, sent, Inline()))
        assert [type(one) for one in found] == [ContributionReceipt, Unavailable, ContributionReceipt]
        assert datanets.stored_count("docs") == 6
        assert {verdict.outcome for verdict in datanets.contribute(sent[1]).verdicts} == {"accept"}
        assert datanets.stored_count("docs") == 9

    def test_no_more_than_asked_for_is_read_ahead(self, tmp_path: Path) -> None:
        read = []

        def reading() -> Iterator[Contribution]:
            for number in range(20):
                read.append(number)
                yield signed("ada", sample_drafts(2, f"subject-{number}"), str(number))

        datanets = open_datanets(tmp_path, 1)
        for number, _ in enumerate(ingest(datanets, reading(), Inline(), ahead=3)):
            assert len(read) <= number + 2 * 3
        assert number == 19


class TestPrepared:
    def test_the_way_to_another_process_changes_nothing(self) -> None:
        prepared = prepare(mixed()[2])
        arrived = pickle.loads(pickle.dumps(prepared))
        assert (arrived.row_ids, arrived.rules) == (prepared.row_ids, prepared.rules)
        for here, there in zip(prepared.examined, arrived.examined, strict=True):
            assert (here.reasons, here.doubts) == (there.reasons, there.doubts)
            for name in ("pair_key", "answer_key", "question", "answer", "num_words"):
                assert getattr(here.features, name) == getattr(there.features, name)
            assert here.features.answer_sketch.digest() == there.features.answer_sketch.digest()
            assert here.features.row_sketch.digest() == there.features.row_sketch.digest()

    def test_by_other_rules_it_is_made_anew(self, tmp_path: Path) -> None:
        dated = Rules(schema=RowSchema(columns=(Column(name="year", type="int64", required=True),)))
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        wrong = prepare(sent, rules=dated)
        assert {one.reasons for one in wrong.examined} == {("missing_column",)}
        assert {verdict.outcome for verdict in datanets.contribute(sent, wrong).verdicts} == {"accept"}

    def test_of_another_contribution_it_vouches_for_no_signature(self, tmp_path: Path) -> None:
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        forged = replace(sent, signature=key_of("eve").sign(b"something"), nonce="2")
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged, prepare(sent))
        assert caught.value.code == "invalid_signature"

    @pytest.mark.parametrize("changed", ["signature", "drafts"])
    def test_of_a_contribution_with_the_same_id_it_vouches_for_no_signature(self, tmp_path: Path, changed: str) -> None:
        datanets, sent = open_datanets(tmp_path, 1), signed("ada", sample_drafts(3))
        others = {"signature": key_of("eve").sign(b"something"), "drafts": tuple(sample_drafts(3, "other"))}
        forged = replace(sent, **{changed: others[changed]})
        with pytest.raises(InvalidInput) as caught:
            datanets.contribute(forged, prepare(sent))
        assert caught.value.code == "invalid_signature"
        assert datanets.stored_count("docs") == 0

    def test_a_wrong_signature_is_never_prepared(self) -> None:
        sent = signed("ada", sample_drafts(3))
        with pytest.raises(InvalidInput):
            prepare(replace(sent, signature=key_of("eve").sign(b"something")))


def test_a_conflict_between_shards_is_told(tmp_path: Path) -> None:
    """Shards are asked at once; what the first of them refuses is what is told."""
    datanets = open_datanets(tmp_path, 3)
    for shard in datanets._layout._shards:
        shard.append = _refuse
    with pytest.raises(Conflict):
        datanets.contribute(signed("ada", sample_drafts(9)))


def _refuse(*arguments: Any) -> None:
    raise Conflict("taken", code="row_id_taken")
