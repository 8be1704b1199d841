"""The report's arithmetic: what the bad ones earned beside the honest, and an answer's top rows."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from openledger.attribution.index import IndexEntry
from openledger.core.values import ContributorScores, PoolPart, Row, Settlement
from openledger.platform.demonstration import Contributor
from openledger.platform.printing import print_report
from openledger.platform.report import (
    add_settlement,
    answer_shares,
    displayed,
    gaming_entries,
    sources,
    told_rows,
    totals,
    without_rows,
)


def person(name, kind="honest", of=""):
    return Contributor(name=name, datanet="d", kind=kind, drafts=(), of=of)


def counted(contributor_id, name, kind, earned, trained=10):
    return {
        "contributor_id": contributor_id, "name": name, "kind": kind, "accepted": 5, "rejected": 2, "review": 1,
        "earned_nano": earned, "rows_trained": trained,
    }  # fmt: skip


def test_a_settlement_is_told_by_parts_with_errors_of_the_whole_pool():
    def measured(method, score, error):
        return ContributorScores(
            adapter="d",
            period="p0001",
            method=method,
            scores_nano={"a": score},
            errors_nano={"a": error},
            gain_nano=100,
        )

    def part(ppm, nano, method, paid):
        left = {"a": paid, "unattributed": nano - paid}
        return PoolPart(ppm=ppm, pool_nano=nano, measured=True, method=method, shares_ppb={}, payouts_nano=left)

    settlement = Settlement(
        adapter="d", period="p0001", pool_nano=1000, shares_ppb={"a": 500_000_000},
        payouts_nano={"a": 500, "unattributed": 500}, transfer_ids={"contributor:a": "pay_1"},
        parts={"use": part(700_000, 700, "one", 420), "improvement": part(300_000, 300, "two", 80)},
    )  # fmt: skip
    entry = {"contributors": [counted("a", "email", "honest", 0)]}
    add_settlement(entry, settlement, measured("one", 70, 10), {"a": 3}, measured("two", 30, 20))
    (told,) = entry["contributors"]
    assert (told["share_ppb"], told["error_ppb"]) == (500_000_000, 70_000_000 + 60_000_000)
    assert (told["earned_nano"], told["earned_parts_nano"]) == (500, {"use": 420, "improvement": 80})
    assert entry["pool_parts"]["improvement"] == {
        "ppm": 300_000, "pool_nano": 300, "measured": True, "method": "two",
    }  # fmt: skip
    nothing = replace(measured("two", 0, 20), gain_nano=-5)  # nothing can be attributed, so its error is no share's
    add_settlement(entry, settlement, measured("one", 70, 10), {"a": 3}, nothing)
    assert entry["contributors"][0]["error_ppb"] == 70_000_000
    assert entry["contributors"][0]["unpaid_ppb"] == 0
    add_settlement(entry, settlement, replace(measured("one", 70, 10), unpaid_nano={"a": 20}), {"a": 3}, nothing)
    assert entry["contributors"][0]["unpaid_ppb"] == 140_000_000  # 20 of 100, of seven tenths of the pool


def test_a_copier_is_shown_beside_whom_he_copied():
    people = {"a": person("email"), "b": person("copier", "copier", "email")}
    entry = {
        "name": "d",
        "contributors": [counted("a", "email", "honest", 500), counted("b", "copier", "copier", 25)],
    }
    found = gaming_entries([entry], people)[0]
    assert (found["reference"], found["reference_nano"], found["ratio"]) == ("email", 500, 0.05)


def test_a_splitters_names_are_added_up_and_compared_row_by_row():
    people = {c: person(f"s{c}", "splitter", "torch.ao") for c in "bc"} | {"a": person("honest")}
    entry = {
        "name": "d",
        "contributors": [
            counted("a", "honest", "honest", 600, trained=30),
            counted("b", "s1", "splitter", 150, trained=5),
            counted("c", "s2", "splitter", 50, trained=5),
        ],
    }
    found = gaming_entries([entry], people)[0]
    assert (found["earned_nano"], found["reference_nano"], found["identities"]) == (200, 200, 2)


def test_sources_are_trained_rows_in_order_of_their_scores():
    rows = {
        f"r{n}": Row(row_id=f"r{n}", datanet="d", contributor_id="a", contribution_id="c", ordinal=n, source=f"s{n}",
                     prompt="p", completion="c")
        for n in range(3)
    }  # fmt: skip
    entries = [IndexEntry(row_id=f"r{n}", contributor_id="a", trained=n != 1) for n in range(3)]
    assert [s["row_id"] for s in sources(entries, [0.1, 9.0, 0.3], rows, {"a": "email"})] == ["r2", "r0"]


def shown_answer(**values):
    source = {"row_id": "r1", "contributor_id": "c1", "contributor": "email", "datanet": "docs", "score": 0.5,
              "source": "email.parse", "prompt": "What does parse do?", "completion": "It parses."}  # fmt: skip
    return {"answer_id": "ans_1", "adapter": "docs", "sources": [source, {**source, "row_id": "r2"}], **values}


def test_a_customer_sees_contributor_and_row_id_of_a_source_unless_its_datanet_says_otherwise():
    expected = {"row_id": "r1", "contributor_id": "c1", "contributor": "email", "datanet": "docs", "score": 0.5}
    for displays in ({"docs": "reference"}, {}):
        answer = displayed(shown_answer(), displays)
        assert (answer["sources"][0], answer["num_hidden_sources"]) == (expected, 0)


def test_a_datanet_may_show_its_rows_text():
    assert displayed(shown_answer(), {"docs": "text"})["sources"] == shown_answer()["sources"]


def test_a_datanet_may_show_nothing_and_what_is_hidden_is_counted():
    answer = displayed(shown_answer(), {"docs": "none"})
    assert (answer["sources"], answer["num_hidden_sources"]) == ([], 2)
    assert displayed(answer, {"docs": "text"}) == answer


def test_each_source_follows_its_own_datanet():
    answer = shown_answer()
    answer["sources"][1]["datanet"] = "secret"
    answer = displayed(answer, {"docs": "text", "secret": "none"})
    assert ([s["row_id"] for s in answer["sources"]], answer["num_hidden_sources"]) == (["r1"], 1)


@pytest.mark.parametrize(("policy", "texts"), [("text", 2), ("reference", 0)])
def test_a_source_that_names_no_datanet_is_of_the_adapters(policy, texts):
    answer = shown_answer()
    for source in answer["sources"]:
        del source["datanet"]
    assert sum("completion" in s for s in displayed(answer, {"docs": policy})["sources"]) == texts


def test_a_row_that_was_taken_back_is_no_source_and_its_question_is_gone():
    answer = shown_answer(asked_row="r2", question="What does parse do?", expected="It parses.", answer="It parses.")
    assert told_rows([answer]) == ["r1", "r2"]
    first = without_rows(answer, {"r1"})
    assert ([s["row_id"] for s in first["sources"]], first["num_removed_sources"]) == (["r2"], 1)
    assert (first["question"], first["answer"]) == ("What does parse do?", "It parses.")
    both = without_rows(first, {"r1", "r2"})
    assert (both["sources"], both["num_removed_sources"]) == ([], 2)
    assert [both[name] for name in ("question", "expected", "answer")] == [""] * 3
    assert without_rows(answer, {"r9"}) == answer


def test_a_rows_question_is_not_told_where_the_report_does_not_say_whose_it_is():
    """As of a report from before it did: the row may have been taken back."""
    said = {"question": "What does parse do?", "expected": "It parses.", "answer": "It parses."}
    old, new = (shown_answer(kind=kind, **said) for kind in ("held_in", "new"))
    assert [without_rows(old, set())[name] for name in said] == [""] * 3
    assert [without_rows(new, set())[name] for name in said] == list(said.values())
    known = shown_answer(kind="held_in", asked_row="r2", **said)
    assert without_rows(known, set()) == known


def test_totals_leave_out_what_was_not_attributed():
    report = {
        "datanets": [
            {"rows_in": 8, "accepted": 5, "rejected": 2, "review": 1, "pool_nano": 100, "unattributed_nano": 30}
        ],
        "answers": [{"fee_nano": 200}],
    }
    assert totals(report) == {
        "rows_in": 8, "accepted": 5, "rejected": 2, "review": 1, "answers": 1, "fees_nano": 200, "paid_nano": 70,
        "unattributed_nano": 30,
    }  # fmt: skip


ONE = ContributorScores(
    adapter="py", period="p1", method="bank/1", scores_nano={"ctr_a": 10**9, "ctr_b": -(10**8), "ctr_c": 3 * 10**8},
    errors_nano={"ctr_a": 3 * 10**8, "ctr_b": 0, "ctr_c": 4 * 10**8}, gain_nano=2 * 10**9,
)  # fmt: skip


def test_an_answers_own_shares_are_told_with_influence_and_error():
    first, second, third = answer_shares(ONE, 1000, {"ctr_a": "ada"})
    assert (first["contributor"], first["share_ppb"], first["influence"], first["error"]) == (
        "ada",
        35 * 10**7,  # 0.09 / 0.3 is taken: who is paid nothing isn't in E
        1.0,
        0.3,
    )
    assert (second["contributor"], second["share_ppb"]) == ("ctr_c", 0)  # less than its part of the sum's error
    assert (third["influence"], third["share_ppb"], third["method"]) == (-0.1, 0, "bank/1")


def test_a_datanet_that_shows_nothing_shows_no_shares_either():
    answer = {"adapter": "py", "contributors": answer_shares(ONE, 1000, {})}
    assert displayed(answer, {"py": "none"})["contributors"] == []
    assert len(displayed(answer, {"py": "reference"})["contributors"]) == 3


@pytest.mark.parametrize("serves", [True, False])
def test_addresses_are_printed_only_while_something_answers_there(serves):
    out = io.StringIO()
    told = {"urls": {"api": "http://127.0.0.1:8420/v1"}, "gaming": [gaming_of("splitter")]}
    print_report(told, Console(file=out, width=200), serves=serves)
    assert ("http://127.0.0.1:8420/v1" in out.getvalue()) == serves
    assert ("make quickstart" in out.getvalue()) != serves
    assert "the ratio is no loss by splitting" in out.getvalue()


def test_what_the_error_of_a_share_leaves_out_stands_below_the_shares():
    for datanets, is_told in (([], False), ([{"name": "tables", "version": 1, "contributors": []}], True)):
        out = io.StringIO()
        print_report({"datanets": datanets}, Console(file=out, width=200))
        assert ("± error says how well a share was measured" in out.getvalue()) == is_told


def gaming_of(kind):
    return {
        "kind": kind, "name": "torch.ao", "accepted": 87, "sent": 90, "earned_nano": 5, "reference": "honest mean",
        "reference_nano": 15, "ratio": 0.33,
    }  # fmt: skip
