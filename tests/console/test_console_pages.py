"""The console's pages: what they show, what they must never let through, their JSON twins."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from memory_service import CHECKPOINT, MemoryService, sample_report
from starlette.testclient import TestClient

from openledger.console import create_full_app, pages
from openledger.core.errors import NotFound

PATHS = [
    "/console", "/console/datanets/os-docs", "/console/datanets/os-docs/appeals", "/console/disputes/os-docs/p1",
    "/console/rows/os-docs/p1", "/console/answers/ans_1", "/console/ledger", "/console/datanets/os-docs/leaderboard",
]  # fmt: skip
HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)>"'>{{ 7*7 }}"""


@pytest.fixture
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture
def client(service: MemoryService) -> Iterator[TestClient]:
    with TestClient(create_full_app(service)) as client:
        yield client


class Elements(HTMLParser):
    """Every element with its attributes, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


class TestEveryPage:
    @pytest.mark.parametrize("path", PATHS)
    def test_forbids_scripts_frames_and_what_comes_from_elsewhere(self, client: TestClient, path: str):
        for response in (client.get(path), client.get(path, params={"format": "json"})):
            policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
            assert policy == {
                "default-src": "'none'",
                "style-src": "'self'",
                "img-src": "'self'",
                "base-uri": "'none'",
                "form-action": "'none'",
                "frame-ancestors": "'none'",
            }
            assert response.headers["X-Content-Type-Options"] == "nosniff"

    @pytest.mark.parametrize("path", PATHS)
    def test_obeys_its_own_policy(self, client: TestClient, path: str):
        for tag, attributes in Elements(client.get(path).text).found:
            assert tag not in ("script", "iframe", "style", "form", "object")
            assert not any(name == "style" or name.startswith("on") for name in attributes)

    @pytest.mark.parametrize("path", PATHS)
    def test_has_a_json_twin(self, client: TestClient, path: str):
        twin = client.get(path, params={"format": "json"})
        assert twin.headers["content-type"] == "application/json"
        assert f'href="{path}?format=json"' in client.get(path).text
        assert twin.json()["period"] == "p1"

    @pytest.mark.parametrize("path", PATHS)
    def test_links_only_to_what_is_there(self, client: TestClient, path: str):
        for tag, attributes in Elements(client.get(path).text).found:
            address = attributes.get("href") or attributes.get("src")
            if tag in ("a", "link", "img") and address and address.startswith("/"):
                known = address.startswith("/v1/ledger/proofs/") or client.get(address).status_code == 200
                assert known, address

    @pytest.mark.parametrize("path", ["/console", "/console/ledger"])
    @pytest.mark.parametrize("told", [{}, {"datanets": None, "totals": None, "ledger": {}}, {"stages": []}])
    def test_is_whole_while_nothing_is_known_yet(
        self, client: TestClient, service: MemoryService, path: str, told: dict[str, Any]
    ):
        service.told = told
        response = client.get(path)
        assert response.status_code == 200
        assert "</html>" in response.text
        assert "None" not in response.text
        assert 'http-equiv="refresh"' in response.text

    def test_does_not_renew_itself_once_the_run_is_complete(self, client: TestClient):
        assert 'http-equiv="refresh"' not in client.get("/console").text

    @pytest.mark.parametrize("section", sorted(sample_report()))
    @pytest.mark.parametrize("path", PATHS)
    def test_bears_any_missing_section(self, service: MemoryService, path: str, section: str):
        del service.told[section]
        response = TestClient(create_full_app(service), raise_server_exceptions=False).get(path)
        assert response.status_code in (200, 404)
        needed = {"datanets": "/datanets/", "answers": "/answers/", "row_scores": "/rows/"}
        assert (response.status_code == 404) == (section in needed and needed[section] in path)


class TestSources:
    def page(self, client: TestClient, service: MemoryService, **change: Any) -> str:
        answer = service.told["answers"][0]
        answer.update(change)
        return client.get(f"/console/answers/{answer['answer_id']}").text

    def test_without_text_are_told_by_contributor_and_row_id(self, client: TestClient, service: MemoryService):
        source = {"row_id": "row_77", "contributor_id": "ctr_os", "contributor": "os.path", "score": 0.4}
        page = self.page(client, service, sources=[source], num_hidden_sources=0)
        assert "row_77" in page
        assert "os.path" in page
        assert "Join one or more path components." not in page

    def test_have_scores_without_a_unit_beside_contributors_in_nats(self, client: TestClient, service: MemoryService):
        share = {"contributor_id": "ctr_os", "contributor": "os.path", "share_ppb": 1, "influence": 0.4, "error": 0.1}
        page = self.page(client, service, contributors=[{**share, "method": "bank/2"}])
        assert "scores compare rows with one another and have no unit" in page
        assert "Influence, nats a token" in page

    def test_that_are_all_hidden_are_said_to_be(self, client: TestClient, service: MemoryService):
        page = self.page(client, service, sources=[], num_hidden_sources=5)
        assert "The Datanet shows none of the rows behind its answers." in page
        assert "Not attributed yet" not in page


class TestDatanetPage:
    def test_counts_rows_now_and_says_of_when_the_earnings_are(self, client: TestClient, service: MemoryService):
        report, live = service.told, {**service.told["datanets"][0], "accepted": 77_777}
        service.told = {**report, "datanets": [live]}
        page = client.get("/console/datanets/os-docs").text
        assert "77,777" in page
        assert "earnings are as of period p1" in page

    def test_explains_the_words_of_a_measurement(self, client: TestClient, service: MemoryService):
        quality = {"ratios": "own=4.5 trust=0", "noise": "0.1", "coalitions": "8"}
        service.told["datanets"][0]["attribution"] = {"method": "bank/2", "gain_nano": 1, "quality": quality}
        page = client.get("/console/datanets/os-docs").text
        assert "trust of what grows with what the index says" in page
        assert "one training&#39;s luck, as a standard deviation" in page


class TestHostileText:
    def test_never_becomes_markup(self, client: TestClient, service: MemoryService):
        plain = [tag for tag, _ in Elements(client.get(PATHS[0]).text).found]
        service.told = _poisoned(service.told)
        page = client.get(PATHS[0]).text
        assert [tag for tag, _ in Elements(page).found] == plain
        assert "&lt;script&gt;" in page
        assert "49" not in re.findall(r"\{\{.*?\}\}|49", page)

    @pytest.mark.parametrize("path", PATHS)
    def test_adds_no_element_and_no_handler_to_any_page(self, service: MemoryService, path: str):
        service.told = _poisoned(service.told)
        page = TestClient(create_full_app(service)).get(path).text
        assert HOSTILE not in page
        for tag, attributes in Elements(page).found:
            assert tag != "script"
            assert not any(name.startswith("on") for name in attributes)

    def test_addresses_that_are_not_of_the_web_do_not_become_links(self, client: TestClient, service: MemoryService):
        service.told["urls"] = {"bad": "javascript:alert(1)", "good": "http://127.0.0.1:8265"}
        targets = [attributes.get("href") for tag, attributes in Elements(client.get("/console").text).found]
        assert "http://127.0.0.1:8265" in targets
        assert not any("javascript" in (target or "") for target in targets)

    def test_unpaired_surrogates_do_not_break_the_page(self, client: TestClient, service: MemoryService):
        service.told["answers"][0]["question"] = "half \ud800 a pair"
        assert client.get("/console").status_code == 200


class TestJsonTwin:
    def test_of_the_overview_is_what_the_page_shows(self, client: TestClient, service: MemoryService):
        assert client.get("/console?format=json").json() == pages.overview(service.told)

    def test_of_a_datanet_is_what_the_page_shows(self, client: TestClient, service: MemoryService):
        found = service.told["datanets"][0]
        assert client.get("/console/datanets/os-docs?format=json").json() == pages.datanet(service.told, found)

    def test_of_an_answer_is_what_the_page_shows(self, client: TestClient, service: MemoryService):
        found = service.told["answers"][0]
        assert client.get("/console/answers/ans_1?format=json").json() == pages.answer(service.told, found)

    def test_of_an_error_is_the_envelope(self, client: TestClient):
        response = client.get("/console/datanets/no-such?format=json")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_datanet")


class TestRows:
    def test_show_what_each_did_with_its_error(self, client: TestClient):
        page = client.get("/console/rows/os-docs/p1").text
        for text in ("row_1", "exactly as its record says", "1,052", "-8"):
            assert text in page
        assert "no bank" not in page

    def test_of_one_contributor_are_his_alone(self, client: TestClient):
        told = client.get("/console/rows/os-docs/p1?contributor=ctr_os_io&format=json").json()
        assert [row["row_id"] for row in told["rows"]] == ["row_2"]

    def test_that_are_more_than_a_page_are_a_link_away(self, client: TestClient, service: MemoryService):
        assert "after=" not in client.get("/console/rows/os-docs/p1").text
        more = [{**service.told["row_scores"]["rows"][0], "row_id": f"row_{n}"} for n in range(101)]
        service.told["row_scores"]["rows"] = more
        own = "/console/rows/os-docs/p1?contributor=ctr_os"
        assert 'href="?contributor=ctr_os&amp;after=row_99"' in client.get(own).text
        last = client.get(f"{own}&after=row_99&format=json").json()
        assert ([row["row_id"] for row in last["rows"]], last["next"]) == (["row_100"], "")

    def test_that_are_not_kept_are_a_page_with_the_code(self, client: TestClient, service: MemoryService):
        del service.told["row_scores"]
        response = client.get("/console/rows/os-docs/p1")
        assert (response.status_code, "no_row_scores" in response.text) == (404, True)

    def test_are_linked_from_the_datanet_whose_settlement_names_them(self, client: TestClient, service: MemoryService):
        link = 'href="/console/rows/os-docs/p1"'
        assert link not in client.get("/console/datanets/os-docs").text
        service.told["datanets"][0]["attribution"]["quality"]["row_scores"] = "ab" * 32
        assert link in client.get("/console/datanets/os-docs").text


class TestOverview:
    def test_ranks_earners_over_all_datanets(self, service: MemoryService):
        service.told["datanets"][2]["contributors"][1]["earned_nano"] = 10**12
        assert pages.overview(service.told)["earners"][0]["datanet"] == "pyarrow-docs"

    def test_shows_money_in_full(self, client: TestClient):
        assert "0.048210000" in client.get("/console").text

    def test_names_a_failed_audit(self, client: TestClient, service: MemoryService):
        assert "audit failed" not in client.get("/console").text
        service.told["ledger"]["audit"]["ok"] = False
        assert "audit failed" in client.get("/console").text


class TestDatanet:
    def test_shows_reasons_share_error_and_quality(self, client: TestClient):
        page = client.get("/console/datanets/os-docs").text
        assert all(text in page for text in ("near duplicate 58", "41.20 %", "2.06 %", "0.002482815", "0.412"))

    def test_that_the_report_lacks_is_asked_of_the_service(self, service: MemoryService):
        class Elsewhere(MemoryService):
            async def datanet(self, name: str) -> dict[str, Any]:
                return {"name": name, "summary": "not in the report"}

        page = TestClient(create_full_app(Elsewhere())).get("/console/datanets/fresh")
        assert page.status_code == 200
        assert "not in the report" in page.text

    def test_that_is_unknown_is_a_page_with_its_code(self, client: TestClient):
        response = client.get("/console/datanets/no-such")
        assert response.status_code == 404
        assert response.headers["content-type"].startswith("text/html")
        assert "unknown_datanet" in response.text


class TestAnswer:
    def test_shows_whose_rows_with_influence_and_error(self, client: TestClient, service: MemoryService):
        service.told["answers"][0]["contributors"] = [
            {"contributor_id": "ctr_a", "contributor": "ada", "share_ppb": 4 * 10**8, "influence": 1.25, "error": 0.375,
             "method": "bank/1"}
        ]  # fmt: skip
        page = client.get("/console/answers/ans_1").text
        for text in ("Whose rows", "bank/1", "ada", "40.0", "1.250", "0.375"):
            assert text in page

    def test_shows_sources_scores_and_the_fee_to_the_nano(self, client: TestClient):
        page = client.get("/console/answers/ans_1").text
        assert all(text in page for text in ("0.4120", "-0.0310", "os.path", "0.000001000", "pool:os-docs:p1"))


class TestLedger:
    def test_shows_the_checkpoint_and_links_each_proof(self, client: TestClient):
        page = client.get("/console/ledger").text
        assert CHECKPOINT.splitlines()[0] in page
        for transfer in ("trf_1", "trf_2", "trf_3"):
            assert f'href="/v1/ledger/proofs/{transfer}"' in page


class TestDisputes:
    def test_shows_each_claim_and_who_recomputed_it(self, client: TestClient):
        page = client.get("/console/disputes/os-docs/p1").text
        for text in (
            "my rows on paths are missing",
            "0.003000000",
            "0.000417185",
            "user:auditor",
            "5c5c5c5c5c5c",
            "upheld",
        ):
            assert text in page
        assert 'href="/v1/ledger/proofs/dsp_ctr_os"' in page

    def test_counts_states_and_sums_awards(self, service: MemoryService):
        told = pages.disputes(service.told, "os-docs", "p1", service.told["disputes"])
        assert told["totals"] == {"open": 1, "upheld": 1, "rejected": 0, "expired": 1, "award_nano": 417_185}

    def test_of_a_pool_that_nobody_contests_says_so(self, client: TestClient, service: MemoryService):
        service.told["disputes"] = []
        assert "Nobody contests what this pool paid." in client.get("/console/disputes/os-docs/p1").text

    def test_are_linked_from_the_datanet_whose_pool_was_paid(self, client: TestClient, service: MemoryService):
        assert 'href="/console/disputes/os-docs/p1"' in client.get("/console/datanets/os-docs").text
        del service.told["datanets"][0]["pool_nano"]
        assert "/console/disputes/" not in client.get("/console/datanets/os-docs").text

    def test_of_a_pool_that_is_not_settled_are_a_page_with_the_code(self):
        class Unsettled(MemoryService):
            async def disputes(self, adapter: str, period: str) -> list[dict[str, Any]]:
                raise NotFound(f"{adapter} wasn't settled in {period}", code="not_settled", param="period")

        response = TestClient(create_full_app(Unsettled())).get("/console/disputes/os-docs/p9")
        assert (response.status_code, "not_settled" in response.text) == (404, True)


class TestAppeals:
    def test_show_what_the_gate_said_and_who_decided_and_no_row(self, client: TestClient):
        page = client.get("/console/datanets/os-docs/appeals").text
        for text in ("noise", "it is a checksum", "overturned", "user:owner", "it is a checksum indeed"):
            assert text in page
        assert 'href="/v1/ledger/proofs/apl_row_2_end"' in page

    def test_of_an_unknown_datanet_are_not_found(self, client: TestClient):
        assert client.get("/console/datanets/no-such/appeals").status_code == 404


class TestRoutes:
    def test_root_leads_to_the_console(self, client: TestClient):
        assert client.get("/", follow_redirects=False).headers["location"] == "/console"

    def test_an_unknown_page_is_a_page(self, client: TestClient):
        response = client.get("/console/no/such")
        assert response.status_code == 404
        assert "unknown_page" in response.text

    def test_static_files_stay_in_their_folder(self, client: TestClient):
        assert client.get("/console/static/style.css").headers["content-type"].startswith("text/css")
        assert client.get("/console/static/..%2frouter.py").status_code == 404


def _poisoned(value: Any, key: str = "") -> Any:
    """`value` with every string but ids and addresses replaced by hostile text."""
    if isinstance(value, dict):
        return {name: _poisoned(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_poisoned(item) for item in value]
    kept = key in ("answer_id", "period", "console", "api", "dashboard") or (key == "name" and "-docs" in str(value))
    return HOSTILE if isinstance(value, str) and not kept else value


class TestTheLeaderboard:
    def test_shows_counts_velocity_earnings_and_who_came_back(self, client: TestClient):
        page = client.get("/console/datanets/os-docs/leaderboard").text
        assert "1 d 2 h" in page, "the time to the first payout"
        assert "0.002482815" in page
        told = client.get("/console/datanets/os-docs/leaderboard?format=json").json()
        assert (told["totals"]["contributors"], told["totals"]["rows_a_week"]) == (5, 120 + 95 + 68 + 1 + 0)
        assert [cohort["active"] for cohort in told["cohorts"]] == [[3, 2, 1], [2, 1]]

    def test_leads_to_the_next_page_where_there_is_one(self, service: MemoryService, client: TestClient):
        path = "/console/datanets/os-docs/leaderboard"
        assert "?after=" not in client.get(path).text
        last = client.get(f"{path}?format=json").json()["contributors"][-1]["contributor_id"]
        service.told["leaderboard"] = {"has_more": True}
        assert f'href="?after={last}"' in client.get(path).text

    def test_of_an_unknown_datanet_is_not_found(self, client: TestClient):
        assert client.get("/console/datanets/no-such/leaderboard").status_code == 404

    def test_of_an_empty_datanet_is_a_whole_page(self, service: MemoryService, client: TestClient):
        service.told["leaderboard"] = {"contributors": [], "cohorts": [], "reviewers": []}
        assert "Nobody has contributed yet" in client.get("/console/datanets/os-docs/leaderboard").text
