"""The quickstart as a user runs it, on a reduced size: interrupted, run to its end, and run again to serve.

Every check reads what the runs left behind: the report, the ledger's file, the proof, the served API.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import openai
import pytest

from openledger.core.errors import Corrupt
from openledger.core.values import ContributorScores
from openledger.economy.economy import Economy
from openledger.ledger import Ledger, audit_file, verify_proof
from openledger.ledger.reader import LedgerReader

SETTINGS = """
rows_per_contributor: 24
held_in_questions: 11
new_questions: 1
evaluated_questions: 8
datanets: [python-stdlib, tables]
recipe: {max_rows: 44, num_epochs: 8, rank: 4, alpha: 32, batch_rows: 8}
"""
STAGE_LIMIT_S = 480


class Run:
    """A quickstart in a process of its own, read line by line."""

    def __init__(self, workdir: Path, *flags: str):
        config = workdir.parent / "settings.yaml"
        config.write_text(SETTINGS)
        command = [sys.executable, "-m", "openledger.cli", "quickstart", "--workdir", str(workdir), "--port", "0"]
        # Ray's variables of this test session would make the run join the session's cluster.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [*command, "--config", str(config), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        self.messages: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._output: list[str] = []
        threading.Thread(target=self._read_errors, daemon=True).start()
        threading.Thread(target=lambda: self._output.append(self.process.stdout.read()), daemon=True).start()

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str) -> None:
        while (line := self._lines.get(timeout=STAGE_LIMIT_S)) is not None:
            self.messages.append(line)
            if text in line:
                return
        pytest.fail(f"the run ended without {text!r}:\n" + "".join(self.messages))

    def finish(self) -> int:
        code = self.process.wait(timeout=STAGE_LIMIT_S)
        while (line := self._lines.get(timeout=10)) is not None:
            self.messages.append(line)
        return code

    def report(self) -> dict:
        assert self.finish() == 0, "".join(self.messages)
        return json.loads(self._output[0])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "work"


@pytest.fixture(scope="module")
def interrupted(workdir) -> Run:
    """Ctrl-C while the adapters are being trained."""
    run = Run(workdir, "--exit", "--json")
    run.wait_for("datanets")
    _wait_for_checkpoint(workdir / "runs")
    run.process.send_signal(signal.SIGINT)
    run.finish()
    return run


def _wait_for_checkpoint(runs: Path) -> None:
    """Until Ray Train has kept a checkpoint: the next run has a half-trained adapter to go on from."""
    for _ in range(STAGE_LIMIT_S * 5):
        if list(runs.glob("*/checkpoint_*")):
            return
        time.sleep(0.2)
    pytest.fail("no checkpoint was kept")


@pytest.fixture(scope="module")
def first(workdir, interrupted) -> dict:
    return Run(workdir, "--exit", "--json").report()


@pytest.fixture(scope="module")
def replayed(workdir, first) -> dict:
    """The first period settled again, with scores that would pay everybody; before the next run opens the ledger."""
    ledger = Ledger(workdir / "ledger" / "ledger.db", name="openledger/local")
    economy = Economy(ledger, workdir / "ledger")
    before, settlements = ledger.balances(), []
    for entry in first["datanets"]:
        greedy = {contributor["contributor_id"]: 10**9 for contributor in entry["contributors"]}
        scores = ContributorScores(
            adapter=entry["name"], period="p0001", method="index/ekfac-1", scores_nano=greedy,
            errors_nano=dict.fromkeys(greedy, 0), gain_nano=10**9,
        )  # fmt: skip
        settlements.append(economy.settle(scores, {}))
    after = ledger.balances()
    economy.close()
    ledger.close()
    return {"before": before, "after": after, "settlements": settlements}


@pytest.fixture(scope="module")
def second(workdir, first, replayed) -> Iterator[dict]:
    """The same command again, left serving; asked by the stock client while it does."""
    run = Run(workdir, "--json")
    run.wait_for("press Ctrl-C")
    served = json.loads((workdir / "report.json").read_text())
    served["api_key"] = (workdir / "keys" / "customer.api_key").read_text()
    yield served
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 0, "".join(run.messages)


def test_an_interrupted_run_says_so_and_leaves_no_process(interrupted):
    assert interrupted.process.returncode == 130
    assert '"code": "interrupted"' in "".join(interrupted.messages)


def test_rows_in_are_rows_stored_rejected_and_in_review(first):
    for entry in first["datanets"]:
        assert entry["rows_in"] == entry["accepted"] + entry["rejected"] + entry["review"]
        sent = sum(c["accepted"] + c["rejected"] + c["review"] for c in entry["contributors"])
        assert entry["rows_in"] == sent
    assert first["totals"]["accepted"] > 350


def test_every_fee_is_the_sum_of_its_parts_and_every_pool_of_its_payouts(first, workdir):
    assert all(sum(answer["parts"].values()) == answer["fee_nano"] > 0 for answer in first["answers"])
    for entry in first["datanets"]:
        in_pool = sum(
            part
            for answer in first["answers"]
            if answer["adapter"] == entry["name"]
            for account, part in answer["parts"].items()
            if account.startswith("pool:")
        )
        paid = sum(contributor["earned_nano"] for contributor in entry["contributors"])
        assert entry["pool_nano"] == in_pool == paid + entry["unattributed_nano"]


def test_the_audit_of_the_ledgers_file_is_clean(first, workdir):
    report = audit_file(workdir / "ledger" / "ledger.db", first["ledger"]["vkey"])
    assert report.num_answers >= len(first["answers"])


def test_every_adapter_on_sale_and_the_base_stand_in_an_offer_of_the_log(first, workdir):
    report = audit_file(workdir / "ledger" / "ledger.db", first["ledger"]["vkey"])
    assert (report.num_offers, report.num_base_offers) == (len(first["datanets"]), 1)


def test_a_single_flipped_bit_in_any_of_its_entries_is_found_and_named(first, workdir, tmp_path):
    copy, key = tmp_path / "ledger.db", first["ledger"]["vkey"]
    with LedgerReader(workdir / "ledger" / "ledger.db") as ledger:
        ledger.backup(copy)
    audit_file(copy, key)
    file = apsw.Connection(str(copy))
    bodies = file.execute("SELECT seq, body FROM batches WHERE length(body) > 2 ORDER BY seq").fetchall()
    for seq, body in bodies[:: max(1, len(bodies) // 20)]:
        file.execute("UPDATE batches SET body = ? WHERE seq = ?", (flipped(body), seq))
        with pytest.raises(Corrupt) as caught:
            audit_file(copy, key)
        assert caught.value.param == f"batch {seq}"
        file.execute("UPDATE batches SET body = ? WHERE seq = ?", (body, seq))
    file.close()
    audit_file(copy, key)


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_honest_work_is_paid_and_the_copier_earns_no_tenth_of_the_original(first):
    honest = [c for entry in first["datanets"] for c in entry["contributors"] if c["kind"] == "honest"]
    assert sum(contributor["earned_nano"] for contributor in honest) > 0
    copier = next(entry for entry in first["gaming"] if entry["kind"] == "copier")
    assert copier["earned_nano"] <= copier["reference_nano"] / 10
    # at this size the original may be unlucky and earn nothing: beside the honest mean, the bar is no empty one
    assert copier["earned_nano"] <= sum(contributor["earned_nano"] for contributor in honest) / len(honest) / 10
    assert copier["accepted"] <= copier["sent"] / 10


def test_one_adapter_is_paid_by_its_bank_and_the_other_by_its_index_and_both_say_so(first):
    methods = {entry["name"]: entry["attribution"]["method"] for entry in first["datanets"]}
    assert methods == {"python-stdlib": "bank/2", "tables": "index/ekfac-3"}
    stated = {entry["name"]: entry["attribution"]["quality"] for entry in first["datanets"]}
    assert stated["python-stdlib"]["scored_by"] == "openlora float32"  # by the engine that answered
    assert "scored_by" not in stated["tables"]


def test_every_answer_shows_the_rows_behind_it(first):
    assert all(len(answer["sources"]) == 5 for answer in first["answers"])


def test_replaying_a_settlement_pays_nobody_twice(replayed):
    assert all(settlement.replayed for settlement in replayed["settlements"])
    assert replayed["before"] == replayed["after"]


def test_the_proof_verifies_and_with_any_byte_changed_it_does_not(first):
    data = Path(first["proof"]["path"]).read_bytes()
    verify_proof(data, first["ledger"]["vkey"])
    step = max(1, len(data) // 300)
    for position in range(0, len(data), step):
        changed = bytes([*data[:position], data[position] ^ 1, *data[position + 1 :]])
        with pytest.raises(Corrupt):
            verify_proof(changed, first["ledger"]["vkey"])


def test_a_second_run_makes_nothing_again_and_settles_the_next_period(first, second):
    assert [entry["adapter"]["digest"] for entry in second["datanets"]] == [
        entry["adapter"]["digest"] for entry in first["datanets"]
    ]
    assert [entry["row_root"] for entry in second["datanets"]] == [entry["row_root"] for entry in first["datanets"]]
    assert (first["period"], second["period"]) == ("p0001", "p0002")
    trained = next(stage for stage in second["stages"] if stage["name"] == "train")
    assert trained["seconds"] < 10


class TestTheStockClient:
    @pytest.fixture
    def client(self, second) -> openai.OpenAI:
        return openai.OpenAI(base_url=second["urls"]["api"], api_key=second["api_key"], max_retries=0)

    @pytest.fixture
    def question(self, second) -> list[dict]:
        return [{"role": "user", "content": second["answers"][0]["question"]}]

    def test_lists_the_adapters(self, client, second):
        sold = {entry["name"] for entry in second["datanets"]} | {second["base_model"]["name"]}
        assert {model.id for model in client.models.list()} == sold

    def test_gets_the_answer_that_was_attributed(self, client, second, question):
        answer = client.chat.completions.create(model="python-stdlib", messages=question, max_tokens=48)
        assert answer.choices[0].message.content == second["answers"][0]["answer"]
        assert answer.usage.completion_tokens > 0

    def test_streams_the_same_answer(self, client, second, question):
        stream = client.chat.completions.create(model="python-stdlib", messages=question, max_tokens=48, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert len(pieces) > 1
        assert "".join(pieces) == second["answers"][0]["answer"]

    def test_is_told_what_is_wrong(self, client, second, question):
        with pytest.raises(openai.NotFoundError, match="no-such-model"):
            client.chat.completions.create(model="no-such-model", messages=question)
        with pytest.raises(openai.BadRequestError, match="empty"):
            client.chat.completions.create(model="tables", messages=[{"role": "user", "content": " "}])
        with pytest.raises(openai.BadRequestError, match="context"):
            client.chat.completions.create(model="tables", messages=[{"role": "user", "content": "word " * 2000}])
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=second["urls"]["api"], api_key="olk_wrong", max_retries=0).models.list()
