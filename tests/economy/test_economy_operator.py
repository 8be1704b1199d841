"""The operator's job, over a real economy: what it does, what it tells, and that it may be repeated."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from documented_commands import ROOT, documented
from economy_values import Town

from jobs import operate as job
from jobs.operate import act, parse_arguments, planned
from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN, Unit, showing
from openledger.core.signing import SigningKey
from openledger.economy.register import RegisterBook
from openledger.ledger import Ledger

OPEN = NANO_PER_OPEN
ADDRESS = "0x" + "ab" * 20


def operate(town: Town, *words: str) -> dict[str, Any]:
    told = act(ask_of(town), parse_arguments(["--workdir", str(town.folder), *words]))
    assert isinstance(told, dict)
    return told


def ask_of(town: Town) -> job.Ask:
    return lambda method, *given: getattr(town.economy, method)(*given)


def on_the_command_line(town: Town, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["operate.py", "--workdir", str(town.folder), *words])


def test_genesis_is_planned_before_it_is_done(town: Town):
    arguments = parse_arguments(["--workdir", ".", "genesis", "--dry-run", "--team", "user:us"])
    plan = {one["bucket"]: one for one in planned(arguments)}
    assert plan["team"] == {
        "bucket": "team", "total_open": "150000000", "at_once_open": "0", "months": "13 to 48", "recipient": "user:us",
    }  # fmt: skip
    assert operate(town, "genesis", "--team", "user:us")["circulating_nano"] == 215_500_000 * OPEN
    with pytest.raises(Conflict):
        operate(town, "genesis")


def test_a_refund_and_a_slash_are_told_as_the_log_holds_them(town: Town):
    sold = town.sell("k1").answer_id
    first = operate(town, "refund", sold, "--reason", "the wrong adapter")
    assert operate(town, "refund", sold, "--reason", "again") == first
    town.economy.grant("user:bob", 100 * OPEN, "bob")
    town.economy.stake("user:bob", "adapter:py", 100 * OPEN, "s1")
    told = operate(town, "slash", "adapter:py", "--cause", "false_lineage", "--evidence", "ab" * 32)
    assert told["taken_nano"] == {"user:bob": 10 * OPEN}


def test_withdrawals_are_handed_over_as_a_file_that_can_be_written_again(town: Town, tmp_path: Path):
    town.economy.grant("user:bob", 9 * OPEN, "bob")
    town.economy.withdraw("user:bob", 9 * OPEN, ADDRESS, "w1")
    files = [tmp_path / "first.csv", tmp_path / "again.csv"]
    told = operate(town, "claims", "--out", str(files[0]))
    assert told == {"round": 1, "claims": 1, "total_open": "9"}
    assert operate(town, "claims", "--round", "1", "--out", str(files[1])) == told
    assert files[0].read_text() == files[1].read_text() == f"address,amount_nano,paid_by\n{ADDRESS},{9 * OPEN},chain\n"


@pytest.mark.parametrize("out", ["", "nowhere/claims.csv"], ids=["a folder", "in no folder"])
def test_a_file_that_cannot_be_closes_no_round(town: Town, tmp_path: Path, out: str):
    town.economy.grant("user:bob", 9 * OPEN, "bob")
    town.economy.withdraw("user:bob", 9 * OPEN, ADDRESS, "w1")
    with pytest.raises(InvalidInput, match="can't be written"):
        operate(town, "claims", "--out", str(tmp_path / out))
    assert operate(town, "claims", "--out", str(tmp_path / "claims.csv"))["round"] == 1


def test_without_a_file_the_withdrawals_alone_are_on_standard_output(
    town: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    town.economy.grant("user:bob", 9 * OPEN, "bob")
    town.economy.withdraw("user:bob", 9 * OPEN, ADDRESS, "w1")
    for more in ([], ["--round", "1"]):
        on_the_command_line(town, monkeypatch, "claims", *more)
        monkeypatch.setattr(job, "over_the_actor", lambda given: act(ask_of(town), given))
        assert job.main() == 0
        printed = capsys.readouterr()
        assert printed.out == f"address,amount_nano,paid_by\r\n{ADDRESS},{9 * OPEN},chain\r\n"
        told = printed.err.splitlines()
        assert json.loads(told[-1]) == {"round": 1, "claims": 1, "total_open": "9"}
        assert told[:-1] == ([] if more else ["round 1 is closed"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["claims"], "'claims --round N' writes it again"),
        (["unit", "EUR"], "the same command tells again"),
    ],
    ids=["claims", "unit"],
)
def test_whoever_stops_it_is_told_how_to_go_on(
    town: Town, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    on_the_command_line(town, monkeypatch, *words)
    monkeypatch.setattr(job, "over_the_actor", interrupted)
    assert job.main() == 130
    printed = capsys.readouterr()
    assert (printed.out, printed.err.startswith("interrupted: "), said in printed.err) == ("", True, True)


def test_a_cap_is_set_for_a_key(town: Town):
    key = town.economy.create_key("user:alice")
    assert operate(town, "cap", key, "2.5") == {"daily_cap_open": "2.5"}


def test_an_account_is_funded_once_for_each_grant_and_gets_one_key(town: Town, tmp_path: Path):
    path = tmp_path / "dora.api_key"
    words = ("account", "user:dora", "--fund", "25", "--grant", "first", "--key-out", str(path))
    told = operate(town, *words)
    assert (told["account"], told["available_open"], told["key_file"]) == ("user:dora", "25", str(path))
    key = path.read_text()
    assert (town.economy.authenticate(key), path.stat().st_mode & 0o777) == ("user:dora", 0o600)
    assert operate(town, *words) == told
    assert path.read_text() == key
    assert operate(town, "account", "user:dora", "--fund", "5", "--grant", "second")["available_open"] == "30"


def test_the_grants_of_the_guide_give_each_party_its_deposit(bare: tuple[Town, ManualClock]):
    town = bare[0]
    guide = documented((ROOT / "docs" / "guides" / "contribute.md").read_text().replace("DATANET", "bees"))
    grants = [words[words.index("account") :] for words in guide if "jobs/operate.py" in words]
    told = [operate(town, *words) for words in grants]
    assert [(one["account"], one["available_open"]) for one in told] == [
        ("user:bees-owner", "1"),
        ("user:operator", "1"),
    ]
    with pytest.raises(Conflict, match="used before for something else"):
        operate(town, *grants[0][:1], "user:else", *grants[0][2:])


def test_in_a_currency_payments_come_in_and_go_out(tmp_path: Path):
    town = Town(tmp_path, ManualClock(), unit=Unit(name="EUR"))
    with showing(town.economy.unit()):
        told = operate(town, "account", "user:dora", "--fund", "25.5", "--grant", "SEPA-1")
        assert told["available_eur"] == "25.5"
        town.economy.withdraw("user:dora", 20_500_000, ADDRESS, "w1")
        assert operate(town, "claims", "--out", str(tmp_path / "claims.csv"))["total_eur"] == "20.5"
        paid = operate(town, "paid-out", "1", "--reference", "SEPA-OUT-1")
        assert paid == {"round": 1, "paid_eur": "20.5"}
        assert operate(town, "paid-out", "1", "--reference", "SEPA-OUT-1") == paid
    assert town.ledger.audit().issued_nano == 5_000_000 + 1
    town.close()


def test_the_unit_is_chosen_before_there_is_an_economy(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    RegisterBook(ledger, ManualClock()).choose(Unit(name="EUR"))  # what `operate.py unit` does, over the actor
    RegisterBook(ledger, ManualClock()).choose(Unit(name="EUR"))
    ledger.close()
    town = Town(tmp_path, ManualClock())
    assert town.economy.unit().name == "EUR"
    with pytest.raises(Conflict) as caught:
        RegisterBook(town.ledger, ManualClock()).choose(Unit(name="USD"))
    assert caught.value.code == "unit_chosen"
    town.ledger.audit()
    town.close()


@pytest.mark.parametrize("words", [[], ["--fund", "5"], ["--grant", "first", "--key-out", "x"]])
def test_an_account_that_nothing_is_asked_for_is_not_opened(town: Town, words: list[str]):
    with pytest.raises(InvalidInput):
        operate(town, "account", "user:new", *words)
    with pytest.raises(NotFound):
        town.economy.balance("user:new")
