"""A Datanet's row schema: declared once, checked row by row, carried into versions, exports and training."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datanet_samples import open_datanets, sample_drafts, signed

from openledger.core.errors import Conflict, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.values import RowDraft
from openledger.datanets.contribution import row_ids
from openledger.datanets.datanets import Datanets
from openledger.datanets.dedupe import DuplicateIndex
from openledger.datanets.gate import Rules, judge
from openledger.datanets.reading import read_drafts
from openledger.datanets.records import Refused
from openledger.datanets.row_schema import PLAIN, Column, RowSchema, turns_before
from openledger.datanets.rows import SCHEMA, rows_of, table_of
from openledger.datanets.segments import read_segment
from openledger.datanets.shard import ShardHost

DATED = RowSchema(columns=(Column(name="year", type="int64"), Column(name="score", type="float64", required=False)))
CHAT = RowSchema(kind="chat")
TALK = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Who collects the nectar of a hive?"},
    {"role": "assistant", "content": "The older workers of the hive do."},
    {"role": "user", "content": "And who feeds the brood?"},
]


def draft(**extra: Any) -> RowDraft:
    return replace(sample_drafts(1)[0], extra=canonical_json(extra).decode() if extra else "")


def codes(schema: RowSchema, row: RowDraft) -> list[str]:
    return [problem.code for problem in schema.problems(row)]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class TestDeclaring:
    @pytest.mark.parametrize(
        "value",
        [{"kind": "poem"}, {"columns": [{"name": "Year", "type": "int64"}]},
         {"columns": [{"name": "prompt", "type": "string"}]},
         {"columns": [{"name": "messages", "type": "string"}]}, {"columns": [{"name": "year", "type": "date"}]},
         {"columns": [{"name": "year"}]}, {"columns": [{"name": "a", "type": "bool"}] * 2}, {"shape": 1}, [], None,
         {"columns": [{"name": f"c{n}", "type": "bool"} for n in range(33)]}, {"columns": 3},
         {"columns": [{"name": "year", "type": "int64", "required": "yes"}]}],
    )  # fmt: skip
    def test_what_is_no_schema_is_refused(self, value: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            RowSchema.from_json(value)
        assert (caught.value.code, caught.value.param) == ("invalid_schema", "row_schema")

    def test_it_survives_json(self) -> None:
        assert RowSchema.from_json(json.loads(json.dumps(DATED.to_json()))) == DATED
        assert RowSchema.from_json({}) == PLAIN

    def test_it_is_fixed_with_the_datanet(self, tmp_path: Path) -> None:
        datanets = open_datanets(tmp_path)
        made = datanets.create("years", "What happened", "acct_owner", DATED)
        assert datanets.create("years", "What happened", "acct_owner", DATED) == made
        with pytest.raises(Conflict):
            datanets.create("years", "What happened", "acct_owner")
        datanets.close()
        again = open_datanets(tmp_path)
        assert (again.datanet("years").row_schema, again.datanet("docs").row_schema) == (DATED, PLAIN)
        again.close()


class TestChecking:
    @pytest.mark.parametrize(
        ("extra", "expected"),
        [({"year": 1999}, []), ({"year": 1999, "score": "0.5"}, []), ({"year": "1999"}, ["wrong_type"]),
         ({"year": True}, ["wrong_type"]), ({"year": 2**63}, ["wrong_type"]),
         ({"year": 1, "score": "nan"}, ["wrong_type"]),
         ({"year": 1, "score": 5}, ["wrong_type"]), ({}, ["missing_column"]),
         ({"year": 1, "place": "here"}, ["unknown_column"]),
         ({"year": 1, "messages": TALK}, ["unknown_column"])],
    )  # fmt: skip
    def test_columns_have_their_type(self, extra: dict[str, Any], expected: list[str]) -> None:
        assert codes(DATED, draft(**extra)) == expected

    @pytest.mark.parametrize(
        "extra", ["{}", "[]", "3", '{"year": 1}', '{"year":1,"year":1}', "x", '{"year":1.0}', "[" * 5000]
    )
    def test_extra_has_one_spelling(self, extra: str) -> None:
        assert codes(DATED, replace(sample_drafts(1)[0], extra=extra)) == ["wrong_schema"]

    def test_a_chat_says_what_its_turns_say(self) -> None:
        said = "\n".join(f"{turn['role']}: {turn['content']}" for turn in TALK)
        row = RowDraft(prompt=said, completion="The younger ones.", extra=canonical_json({"messages": TALK}).decode())
        assert codes(CHAT, row) == []
        assert codes(CHAT, replace(row, prompt="Something else")) == ["wrong_schema"]
        assert turns_before(row) == TALK

    @pytest.mark.parametrize(
        "turns", [[], [{"role": "user", "content": "One question?"}], TALK[:3], [{"role": "tool", "content": "x"}],
                  ["x"], [{"role": "user"}], [{"role": "user", "content": 3}], "x"],
    )  # fmt: skip
    def test_turns_that_are_none_are_refused(self, turns: Any) -> None:
        assert codes(CHAT, draft(messages=turns)) == ["wrong_schema"]

    def test_a_text_is_asked_by_one_line(self) -> None:
        text = RowSchema(kind="text")
        assert codes(text, RowDraft(prompt="Bees", completion="They fly.")) == []
        assert codes(text, RowDraft(prompt="Bees\nand more", completion="They fly.")) == ["wrong_schema"]

    def test_the_gate_rejects_with_the_reason_and_in_place(self) -> None:
        rows = [replace(one, extra='{"year":1999}') for one in sample_drafts(4)]
        rows[2] = replace(rows[2], extra='{"place":"x","year":"then"}')
        verdicts = judge(rows, ["a", "b", "c", "d"], DuplicateIndex(), rules=Rules(schema=DATED))
        assert [verdict.outcome for verdict in verdicts] == ["accept", "accept", "reject", "accept"]
        assert (verdicts[2].ordinal, verdicts[2].reasons) == (2, ("unknown_column", "wrong_type"))

    def test_a_datanet_without_columns_takes_none(self) -> None:
        assert codes(PLAIN, draft(year=1)) == ["unknown_column"]


class TestReading:
    @pytest.mark.parametrize("wrong", [70_000, pytest.param(7_000_000, marks=pytest.mark.slow)])
    def test_a_wrong_row_far_into_a_stream_is_refused_with_its_place_and_no_other(
        self, tmp_path: Path, wrong: int
    ) -> None:
        path = tmp_path / "rows.jsonl"
        with path.open("w") as stream:
            for number in range(1, wrong + 3):
                year = '"then"' if number == wrong else number
                stream.write(f'{{"prompt":"p{number}","completion":"c","source":"mine","year":{year}}}\n')
        refused, num_read = [], 0
        for item in read_drafts(path, DATED):
            refused += [item] if isinstance(item, Refused) else []
            num_read += 1
        assert num_read == wrong + 2
        assert refused == [Refused("rows.jsonl", f"line {wrong}", "wrong_type", "column year: 'then' is no int64")]

    def test_csv_has_values_as_text(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.csv"
        path.write_text("prompt,completion,year,score\nWhat?,That.,1999,0.5\nWho?,She.,12,\nWhen?,Then.,x,1\n")
        *kept, refused = read_drafts(path, DATED)
        assert [row.extra for row in kept if isinstance(row, RowDraft)] == [
            '{"score":"0.5","year":1999}',
            '{"year":12}',
        ]
        assert (refused.place, refused.code) == ("line 4", "wrong_type")

    def test_other_fields_are_left_out(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b", "year": 1, "mood": "fine"}])
        assert [row.extra for row in read_drafts(path, DATED)] == ['{"year":1}']
        assert [row.extra for row in read_drafts(path)] == [""]

    def test_chats_keep_their_turns(self, tmp_path: Path) -> None:
        answer = {"role": "assistant", "content": "The younger ones do."}
        path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [*TALK, answer]}, {"messages": [TALK[1], answer]}])
        long, short = read_drafts(path, CHAT)
        assert turns_before(long) == TALK
        assert (short.prompt, short.extra) == (TALK[1]["content"], "")
        flat = next(read_drafts(path))
        assert (flat.prompt, flat.extra) == (long.prompt, "")

    @pytest.mark.parametrize(
        "turns", [TALK, [TALK[0], {"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]]
    )
    def test_a_chat_ends_with_the_assistant_and_knows_three_roles(self, tmp_path: Path, turns: Any) -> None:
        (refused,) = read_drafts(write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}]), CHAT)
        assert isinstance(refused, Refused)
        assert (refused.place, refused.code) == ("line 1", "wrong_schema")


class TestKeeping:
    @pytest.fixture
    def datanets(self, tmp_path: Path) -> Iterator[Datanets]:
        opened = open_datanets(tmp_path / "datanets")
        opened.create("years", "What happened", "acct_owner", DATED)
        opened.create("talks", "Who said what", "acct_owner", CHAT)
        yield opened
        opened.close()

    def published(self, datanets: Datanets, name: str, rows: list[RowDraft]) -> None:
        receipt = datanets.contribute(signed("ada", rows, datanet=name))
        assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}
        datanets.publish(name)

    def test_a_version_is_exported_in_the_datanets_one_schema(self, datanets: Datanets, tmp_path: Path) -> None:
        rows = [replace(one, extra=f'{{"score":"0.5","year":{n}}}') for n, one in enumerate(sample_drafts(3))]
        rows[1] = replace(rows[1], extra='{"year":1}')
        self.published(datanets, "years", rows)
        datanets.export("years", 1, tmp_path / "out")
        table = pq.read_table(tmp_path / "out" / "rows.parquet")
        assert table.schema.equals(DATED.arrow())
        assert sorted(table["year"].to_pylist()) == [0, 1, 2]
        assert sorted(table["score"].to_pylist(), key=str) == [0.5, 0.5, None]
        fields = json.loads((tmp_path / "out" / "croissant.json").read_text())["recordSet"][0]["field"]
        assert [(one["name"], one["dataType"]) for one in fields[-3:]] == [
            ("year", "sc:Integer"),
            ("score", "sc:Float"),
            ("licence", "sc:Text"),
        ]
        manifest = json.loads((tmp_path / "datanets" / "versions" / "years" / "1.json").read_text())
        assert RowSchema.from_json(manifest["row_schema"]) == DATED

    def test_an_export_is_read_again_as_the_same_rows(self, datanets: Datanets, tmp_path: Path) -> None:
        path = write_jsonl(
            tmp_path / "a.jsonl",
            [{"messages": [*TALK, {"role": "assistant", "content": "The younger workers feed the brood."}]},
             {"messages": [TALK[1], {"role": "assistant", "content": "Foragers collect it in summer."}]}],
        )  # fmt: skip
        rows = list(read_drafts(path, CHAT))
        self.published(datanets, "talks", rows)
        datanets.export("talks", 1, tmp_path / "out")
        again = list(read_drafts(tmp_path / "out" / "rows.parquet", CHAT))
        assert sorted(again, key=lambda row: row.source) == sorted(rows, key=lambda row: row.source)
        (field,) = [
            one for one in json.loads((tmp_path / "out" / "croissant.json").read_text())["recordSet"][0]["field"]
            if one["name"] == "messages"
        ]  # fmt: skip
        assert [part["name"] for part in field["subField"]] == ["role", "content"]

    def test_what_is_extra_is_signed(self) -> None:
        one, other = (signed("ada", [replace(sample_drafts(1)[0], extra=extra)]) for extra in ("", '{"year":1}'))
        assert one.content_root != other.content_root
        assert row_ids(one) != row_ids(other)

    def test_rows_of_before_are_taken_over_with_nothing_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import lance

        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)  # there was no journal
        rows = list(rows_of(_first_rows()))
        host = ShardHost(tmp_path)
        host.append("docs", rows, "k1")
        folder = tmp_path / "docs"
        _as_it_was_before(folder, lance)
        again = ShardHost(tmp_path)
        assert again.rows("docs", [row.row_id for row in rows]) == rows
        again.append("docs", rows, "k1")
        assert again.count("docs") == len(rows), "the key of before is still known"
        assert lance.dataset(str(folder / "rows.lance")).schema.names[:-1] == SCHEMA.names

    def test_a_segment_of_before_is_read(self, tmp_path: Path) -> None:
        from openledger.core.hashing import digest_bytes

        table = _first_rows().replace_schema_metadata({"openledger.key": "k1"})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        path = tmp_path / f"k.{digest_bytes(data)[:32]}.parquet"
        path.write_bytes(data)
        found, key = read_segment(path)
        assert (found.schema.equals(SCHEMA), key) == (True, "k1")


def _first_rows() -> pa.Table:
    contribution = signed("ada", sample_drafts(5))
    return pa.table(
        {
            "row_id": row_ids(contribution), "datanet": ["docs"] * 5, "contributor_id": ["ctr"] * 5,
            "contribution_id": ["ctb"] * 5, "ordinal": pa.array(range(5), pa.int32()),
            "source": [one.source for one in contribution.drafts],
            "prompt": [one.prompt for one in contribution.drafts],
            "completion": [one.completion for one in contribution.drafts],
        },
        schema=SCHEMA.remove(SCHEMA.get_field_index("extra")),
    )  # fmt: skip


def _as_it_was_before(folder: Path, lance: Any) -> None:
    """The shard's folder as it would have been written before rows had `extra`."""
    from openledger.core.hashing import digest_file
    from openledger.datanets.filelist import write_list

    uri = folder / "rows.lance"
    table = lance.dataset(str(uri)).to_table().drop_columns(["extra"])
    for path in [path for path in uri.rglob("*") if path.is_file()]:
        path.unlink()
    lance.write_dataset(table, str(uri), data_storage_version="2.1")
    names = [
        str(path.relative_to(folder)) for path in uri.rglob("*") if path.is_file() and "_transactions" not in str(path)
    ]
    write_list(folder, {name: digest_file(folder / name) for name in names})


def test_stored_rows_have_one_shape() -> None:
    assert table_of([]).schema.equals(SCHEMA)
