"""The commands of stake, votes and payouts, against a real economy."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from economy_values import Town, scores
from memory_service import API_KEY, MemoryService
from served_app import served

from openledger.api import create_app
from openledger.cli.main import main
from openledger.core.clock import ManualClock
from openledger.core.errors import InsufficientFunds, NotFound, Unavailable
from openledger.core.money import NANO_PER_OPEN, Unit
from openledger.core.signing import SigningKey, contributor_id

OPEN = NANO_PER_OPEN
ADDRESS = "0x" + "ab" * 20


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    """Alice, whose key is in the environment, has 1,000 OPEN, 200 of them staked; one pool is settled."""
    made = Town(tmp_path, ManualClock())
    made.economy.grant("user:alice", 1000 * OPEN, "start")
    made.economy.stake("user:alice", "adapter:py", 200 * OPEN, "s1")
    made.sell("k1")
    made.clock.advance(1)
    made.economy.settle(scores(), {"ctr_a": "user:alice"})
    with served(create_app(MemoryService(desk=made.desk()))) as url:
        monkeypatch.setenv("OPENLEDGER_URL", url)
        monkeypatch.setenv("OPENLEDGER_API_KEY", API_KEY)
        yield made
    made.close()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = main(list(words))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_stake_is_shown_added_and_removed(town: Town, capsys: pytest.CaptureFixture[str]):
    assert "5 OPEN" in run(capsys, "stake", "add", "datanet:py-docs", "5")
    assert "UTC" in run(capsys, "stake", "remove", "datanet:py-docs", "5")
    shown = run(capsys, "stake", "show")
    assert [text for text in ("adapter:py", "200 OPEN", "datanet:py-docs", "UTC") if text not in shown] == []
    assert json.loads(run(capsys, "stake", "show", "--json"))["power_nano"] == 200 * OPEN


def test_a_proposal_from_the_terminal(town: Town, capsys: pytest.CaptureFixture[str]):
    words = ("govern", "propose", "Less", "--change", "owner_ppm=150000", "--change", "treasury_ppm=150000")
    assert '"sent": false' in run(capsys, *words, "--dry-run", "--json")
    assert town.economy.proposals() == []
    assert "Pending" in run(capsys, *words, "--text", "why", "--idempotency-key", "p1")
    run(capsys, *words, "--text", "why", "--idempotency-key", "p1")
    (proposal,) = town.economy.proposals()
    assert proposal["action"]["changes"] == {"owner_ppm": 150_000, "treasury_ppm": 150_000}
    assert proposal["proposal"] in run(capsys, "govern", "proposals")
    town.clock.advance(proposal["snapshot_ms"] - town.clock.now_ms() + 1)
    assert "200 OPEN" in run(capsys, "govern", "vote", proposal["proposal"], "for")
    assert "200 OPEN" in run(capsys, "govern", "show", proposal["proposal"])


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["--spend", "user:bob", "2"], {"kind": "spend", "source": "treasury", "recipient": "user:bob",
                                        "amount_nano": 2 * OPEN}),
        (["--bounty", "user:bob", "0.000000002", "--for", "datanet:py-docs", "--pool", "pool:py:p0001"],
         {"kind": "bounty", "bounty": "T", "object": "datanet:py-docs", "recipient": "user:bob", "amount_nano": 2,
          "from_nano": {"pool:py:p0001": 2}}),
        ([], {"kind": "text"}),
    ],
)  # fmt: skip
def test_other_proposals_from_the_terminal(town: Town, capsys: pytest.CaptureFixture[str], words, action):
    run(capsys, "govern", "propose", "T", *words)
    assert town.economy.proposals()[0]["action"] == action


def test_parameters_and_a_simulation_are_tables(town: Town, capsys: pytest.CaptureFixture[str]):
    shown = run(capsys, "govern", "parameters")
    assert [text for text in ("version 8", "owner_ppm", "0 to 1000000") if text not in shown] == []
    shown = run(capsys, "govern", "simulate", "contributors_ppm=600000", "stakers_ppm=100000")
    assert [text for text in ("ctr_a", "0.000000056 OPEN", "0.000000068 OPEN") if text not in shown] == []
    assert "isn't in these figures" not in shown
    shown = run(capsys, "govern", "simulate", "shares_rule=shares/3")
    assert "py was settled by shares/5." in shown
    assert "isn't in these figures" in shown


def test_a_payout_is_explained_exported_and_withdrawn(town: Town, capsys: pytest.CaptureFixture[str]):
    (paid,) = [one for one in town.economy.payouts("user:alice") if one.code == "payout"]
    assert "went into the pool" in run(capsys, "payout", "explain", paid.transfer_id)
    assert paid.transfer_id in run(capsys, "payout", "csv")
    assert '"sent": false' in run(capsys, "payout", "withdraw", "2", "--to", ADDRESS, "--dry-run", "--json")
    capsys.readouterr()
    codes = [main(["payout", "withdraw", "5000", "--to", ADDRESS, *more]) for more in (["--dry-run"], [])]
    assert codes == [InsufficientFunds.exit_code] * 2
    run(capsys, "payout", "withdraw", "3", "--to", ADDRESS)
    town.economy.close_claims()
    assert town.economy.claims(1) == [(ADDRESS, 3 * OPEN)]


def test_a_withdrawal_of_whom_nobody_has_paid_ends_alike_in_a_dry_run(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    async def balance(_: MemoryService, account: str) -> dict[str, object]:
        with pytest.raises(NotFound):
            town.economy.balance(account)
        return {"account": account, "available_nano": 0, "held_nano": 0, "is_open": False}

    monkeypatch.setattr(MemoryService, "balance", balance)
    SigningKey.load_or_create(tmp_path / "my.key")
    told = []
    for more in (["--dry-run"], ["--dry-run", "--idempotency-key", "once"], []):
        words = ["payout", "withdraw", "2", "--to", ADDRESS, "--json", "--key", str(tmp_path / "my.key")]
        assert main([*words, *more]) == NotFound.exit_code
        told.append(json.loads(capsys.readouterr().err)["error"])
    assert [(one["code"], one["message"], one["param"]) for one in told] == [
        ("account_not_found", told[0]["message"], "account")
    ] * 3


def test_a_dry_run_with_a_key_may_be_of_a_withdrawal_that_was_made(town: Town, capsys: pytest.CaptureFixture[str]):
    available = town.available() // OPEN
    words = ["payout", "withdraw", str(available), "--to", ADDRESS, "--idempotency-key", "once"]
    run(capsys, *words)
    assert main([*words, "--dry-run", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["sent"] is False
    assert "only a withdrawal that was made with this key before" in printed.err
    run(capsys, *words)
    assert town.available() < OPEN


def test_what_each_row_did_is_a_table(town: Town, capsys: pytest.CaptureFixture[str]):
    shown = run(capsys, "payout", "rows", "os-docs", "p1")
    assert [text for text in ("row_1", "ctr_os_io", "1052", "use expected") if text not in shown] == []
    told = json.loads(run(capsys, "payout", "rows", "os-docs", "p1", "--contributor", "ctr_os", "--json"))
    assert [row["use"]["expected_nano"] for row in told["rows"]] == [52]
    assert main(["payout", "rows", "os-docs", "p1", "--limit", "1"]) == 0
    first = capsys.readouterr()
    assert ("row_2" in first.out, first.err.strip()) == (False, "more: --after row_1")
    assert "row_2" in run(capsys, "payout", "rows", "os-docs", "p1", "--limit", "1", "--after", "row_1")


def test_in_a_currency_amounts_are_read_and_written_in_it(tmp_path: Path, monkeypatch, capsys):
    town = Town(tmp_path, ManualClock(), unit=Unit(name="EUR"))
    town.economy.grant("user:alice", 5_000_000, "SEPA-1")
    with served(create_app(MemoryService(desk=town.desk()))) as url:
        monkeypatch.setenv("OPENLEDGER_URL", url)
        monkeypatch.setenv("OPENLEDGER_API_KEY", API_KEY)
        assert "1.5 EUR" in run(capsys, "stake", "add", "adapter:py", "1.5")
        assert town.economy.stakes("user:alice")["staked_nano"] == {"adapter:py": 1_500_000}
        shown = run(capsys, "stake", "show")
        run(capsys, "payout", "withdraw", "2.25", "--to", ADDRESS)
    assert "OPEN" not in shown
    assert town.available() == 5_000_000 - 1_500_000 - 2_250_000
    town.close()


def test_a_contributors_key_is_enough_to_see_payouts_and_draw_them(town, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENLEDGER_API_KEY")
    path = tmp_path / "my.key"
    account = f"contributor:{contributor_id(SigningKey.load_or_create(path).public_key)}"
    words = ("payout", "withdraw", "3", "--to", ADDRESS, "--key", str(path))
    assert main(list(words)) == 6
    assert "opens with the first payout" in capsys.readouterr().err
    town.economy.grant(account, 9 * OPEN, "earned")
    assert run(capsys, "payout", "csv", "--key", str(path)).startswith("transfer_id,account")
    assert "Payouts: none yet" in run(capsys, "payouts", "--key", str(path))
    assert account in run(capsys, *words)
    assert town.economy.balance(account).available_nano == 6 * OPEN
    assert main(["payouts"]) == 3


REFUSED = [
    (["stake", "add", "py", "5"], "invalid_object", 2),
    (["stake", "add", "adapter:py", "a lot"], "invalid_amount", 2),
    (["payout", "withdraw", "0.5", "--to", ADDRESS], "below_minimum", 2),
    (["payout", "explain", "trf_9"], "transfer_not_found", 6),
    (["govern", "vote", "prop_000099", "for"], "proposal_not_found", 6),
    (["govern", "propose", "T", "--change", "owner_ppm"], "usage", 2),
    (["govern", "propose", "T", "--change", "a=1", "--appeal", "3"], "usage", 2),
    (["govern", "propose", "T", "--change", "rent=1"], "unknown_parameter", 2),
]


def test_what_can_not_be_is_one_block_with_its_exit_code(town, capsys):
    """One server for all of them: none changes anything."""
    for words, code, exit_code in REFUSED:
        assert (main(words), code in capsys.readouterr().err) == (exit_code, True), words


@pytest.mark.parametrize(
    "words",
    [
        ("stake", "add", "adapter:py", "5"),
        ("payout", "withdraw", "5", "--to", ADDRESS),
        ("govern", "propose", "T", "--spend", "user:bob", "5"),
        ("ask", "os-docs", "a question whose fee could not be told"),
    ],
)
def test_without_the_servers_unit_no_amount_is_sent(
    town: Town, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
):
    def busy() -> None:
        raise Unavailable("busy", code="ledger_unavailable")

    monkeypatch.setattr(town.economy, "parameter_table", busy)
    before = town.ledger.checkpoint()
    assert main(list(words)) != 0
    printed = capsys.readouterr()
    assert (printed.out, "ledger_unavailable" in printed.err) == ("", True)
    assert town.ledger.checkpoint() == before


def test_what_needs_no_amount_needs_no_unit(
    town: Town, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(town.economy, "parameter_table", lambda: pytest.fail("the unit was asked for"))
    assert run(capsys, "stake", "delegate", "user:bob")
