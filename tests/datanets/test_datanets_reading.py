"""Files read as rows: every format, what of each can't be read, and that the rest goes on."""

import csv
import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pypdf
import pytest

from openledger.core.errors import InvalidInput, NotFound
from openledger.core.values import RowDraft
from openledger.datanets.contribution import MAX_ROW_BYTES
from openledger.datanets.reading import only_rows, read_drafts
from openledger.datanets.records import Refused
from openledger.datanets.row_schema import own_licence

GOOD = {"prompt": "What is a?", "completion": "It is b.", "source": "me"}
ROW = RowDraft(**GOOD)
TURNS = (("user", "a"), ("assistant", "b"), ("user", "c"))


def read(path: Path) -> tuple[list[RowDraft], list[Refused]]:
    items = list(read_drafts(path))
    rows = [item for item in items if isinstance(item, RowDraft)]
    return rows, [item for item in items if isinstance(item, Refused)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


class TestRecords:
    @pytest.mark.parametrize(
        ("record", "prompt", "completion"),
        [
            ({"prompt": "p", "completion": "c"}, "p", "c"),
            ({"instruction": "p", "input": "x", "output": "c"}, "p\nx", "c"),
            ({"question": "p", "answer": "c", "label": 3}, "p", "c"),
            ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]}, "p", "c"),
            (
                {
                    "messages": [
                        {"role": r, "content": t} for r, t in (("user", "a"), ("assistant", "b"), ("user", "c"))
                    ]
                },
                "user: a\nassistant: b",
                "c",
            ),
            ({"text": "c", "title": "p"}, "p", "c"),
            ({"text": "c"}, "my rows", "c"),
        ],
    )
    def test_a_record_says_its_row_in_one_of_three_ways(
        self, tmp_path: Path, record: dict[str, object], prompt: str, completion: str
    ) -> None:
        rows, refused = read(write(tmp_path / "my-rows.jsonl", lines(record)))
        assert refused == []
        assert rows == [RowDraft(prompt=prompt, completion=completion, source="my-rows.jsonl#line=1")]

    def test_the_same_records_are_the_same_rows_in_every_format(self, tmp_path: Path) -> None:
        records = [
            {"prompt": f"What is {n}?", "completion": f'It is "{n}",\nor not.', "source": str(n)} for n in range(5)
        ]
        table, text = pa.Table.from_pylist(records), io.StringIO()
        writer = csv.DictWriter(text, records[0])
        writer.writeheader()
        writer.writerows(records)
        paths = [write(tmp_path / "a.jsonl", lines(*records)), write(tmp_path / "a.csv", text.getvalue())]
        pq.write_table(table, tmp_path / "a.parquet")
        for opened, name in ((pa.ipc.new_stream, "s.arrow"), (pa.ipc.new_file, "f.arrow")):
            with opened(str(tmp_path / name), table.schema) as stream:
                stream.write_table(table)
            paths.append(tmp_path / name)
        expected = [RowDraft(**record) for record in records]
        for path in (*paths, tmp_path / "a.parquet"):
            assert read(path) == (expected, []), path.name

    @pytest.mark.parametrize(
        ("line", "code"),
        [
            (b"{not json}", "malformed_row"),
            (b'{"prompt": "a"}', "malformed_row"),
            (b'{"prompt": "a", "completion": 3}', "malformed_row"),
            (b'{"prompt": "a", "completion": "b", "source": ["x"]}', "malformed_row"),
            (b'{"messages": [{"role": "user"}]}', "malformed_row"),
            (b'["a", "b"]', "malformed_row"),
            (b'{"prompt": "\xff", "completion": "b"}', "invalid_text"),
            (b'{"prompt": "\\ud800", "completion": "b"}', "invalid_text"),
            (b"[" * 60_000, "malformed_row"),
            (b'{"prompt":' * 9_000, "malformed_row"),
            (b'{"prompt": "a", "completion": "' + b"x" * MAX_ROW_BYTES + b'"}', "row_too_large"),
            (b"x" * 2_000_000, "row_too_large"),
        ],
    )
    def test_a_bad_line_is_refused_by_its_number_and_the_others_stay(
        self, tmp_path: Path, line: bytes, code: str
    ) -> None:
        good = lines(GOOD).encode()
        rows, refused = read(write(tmp_path / "rows.jsonl", good + b"\n" + line + b"\n" + good))
        assert rows == [ROW, ROW]
        assert [(one.place, one.code) for one in refused] == [("line 3", code)]

    def test_nul_is_for_the_gate_to_refuse(self, tmp_path: Path) -> None:
        rows, refused = read(write(tmp_path / "rows.jsonl", lines({**GOOD, "completion": "a\x00b"})))
        assert (rows[0].completion, refused) == ("a\x00b", [])

    def test_a_row_of_100_mb_is_refused_in_little_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        with path.open("wb") as stream:
            stream.write(b'{"prompt": "a", "completion": "')
            for _ in range(100):
                stream.write(b"x" * 2**20)
            stream.write(b'"}\n' + lines(GOOD).encode())
        tracemalloc.start()
        rows, refused = read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (rows, [one.place for one in refused]) == ([ROW], ["line 1"])
        assert peak < 5 * 2**20

    @pytest.mark.parametrize("wrong", [70_000, pytest.param(7_000_000, marks=pytest.mark.slow)])
    def test_a_wrong_schema_far_into_a_stream_stops_nothing(self, tmp_path: Path, wrong: int) -> None:
        path, good = tmp_path / "rows.jsonl", '{"prompt": "a", "completion": "b"}\n'
        with path.open("w") as stream:
            for _ in range((wrong - 1) // 9_999):
                stream.write(good * 9_999)
            stream.write(good * ((wrong - 1) % 9_999) + '{"prompt": 1}\n' + good * 10)
        counts = {RowDraft: 0, Refused: 0}
        for item in read_drafts(path):
            counts[type(item)] += 1
            if isinstance(item, Refused):
                assert item.place == f"line {wrong}"
        assert counts == {RowDraft: wrong + 9, Refused: 1}

    def test_ragged_lines_of_csv_are_refused_by_their_numbers(self, tmp_path: Path) -> None:
        text = b'prompt,completion\na,b\na,b,c\na\n"a\nb",c\n\na,\xff\na,"' + b"x" * 200_000 + b'"\na,b\n'
        rows, refused = read(write(tmp_path / "rows.csv", text))
        assert [(row.prompt, row.completion, row.source) for row in rows] == [
            ("a", "b", "rows.csv#line=2"), ("a\nb", "c", "rows.csv#line=6"), ("a", "b", "rows.csv#line=9"),
        ]  # fmt: skip
        assert [(one.place, one.code) for one in refused] == [
            ("line 3", "malformed_row"), ("line 4", "malformed_row"), ("line 8", "invalid_text"),
            ("line 9", "row_too_large"),
        ]  # fmt: skip

    def test_a_damaged_parquet_or_arrow_file_is_refused_whole(self, tmp_path: Path) -> None:
        pq.write_table(pa.Table.from_pylist([GOOD] * 9), tmp_path / "a.parquet")
        data = (tmp_path / "a.parquet").read_bytes()
        for name, content in (("a.parquet", data[:-20]), ("b.parquet", b"PAR1"), ("c.arrow", b"ARROW1junk" * 9)):
            rows, (refused,) = read(write(tmp_path / name, content))
            assert (rows, refused.code, refused.file) == ([], "unreadable_file", name)

    def test_a_stream_of_any_length_is_read_as_it_is_asked_for(self, tmp_path: Path) -> None:
        reader = read_drafts(write(tmp_path / "rows.jsonl", lines(GOOD, GOOD) + "{"))
        assert next(reader) == ROW


class TestDocuments:
    MARKDOWN = (
        "# Bees\n\nBees fly by day.\nThey rest at night.\n\n## Honey\n\n```\ncode a b\n\n# no heading\n```\n\nok\n"
    )

    def test_markdown_is_asked_by_its_headings(self, tmp_path: Path) -> None:
        rows, refused = read(write(tmp_path / "bees.md", self.MARKDOWN))
        assert refused == []
        assert [(row.prompt, row.completion, row.source) for row in rows] == [
            ("Bees", "Bees fly by day.\nThey rest at night.", "bees.md#line=3"),
            ("Bees / Honey", "```\ncode a b\n\n# no heading\n```", "bees.md#line=8"),
        ]

    def test_plain_text_is_asked_by_its_name(self, tmp_path: Path) -> None:
        first = b"\xef\xbb\xbfThe first paragraph\nof two lines.\n\n\n"
        text = first + b"The second one here.\nbad \xff line\nThe third one here."
        rows, refused = read(write(tmp_path / "about_the-bees.txt", text))
        assert [(row.prompt, row.completion, row.source.split("#")[1]) for row in rows] == [
            ("about the bees", "The first paragraph\nof two lines.", "line=1"),
            ("about the bees", "The second one here.", "line=5"),
            ("about the bees", "The third one here.", "line=7"),
        ]
        assert [(one.place, one.code) for one in refused] == [("line 6", "invalid_text")]

    def test_a_long_paragraph_is_divided_where_sentences_end(self, tmp_path: Path) -> None:
        sentences = [f"This is the sentence with the number {number} of them." for number in range(60)]
        rows, _ = read(write(tmp_path / "a.txt", " ".join(sentences)))
        assert " ".join(row.completion for row in rows) == " ".join(sentences)
        assert max(len(row.completion) for row in rows) <= 1_000
        assert [row.source for row in rows[:2]] == ["a.txt#line=1&part=1", "a.txt#line=1&part=2"]

    def test_markdown_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        _, (refused,) = read(write(tmp_path / "a.md", b"caf\xe9 au lait with milk"))
        assert (refused.code, "byte 3" in refused.reason) == ("invalid_text", True)

    def test_a_word_document_is_asked_by_its_headings(self, tmp_path: Path) -> None:
        document = docx.Document()
        document.add_heading("Bees", 1)
        document.add_paragraph("Bees fly by day and rest at night.")
        table = document.add_table(1, 2)
        table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Food", "nectar and pollen"
        document.save(str(tmp_path / "bees.docx"))
        rows, refused = read(tmp_path / "bees.docx")
        assert refused == []
        assert [(row.prompt, row.completion) for row in rows] == [
            ("Bees", "Bees fly by day and rest at night."), ("Bees", "Food: nectar and pollen"),
        ]  # fmt: skip

    def test_a_zip_bomb_as_a_word_document_is_refused_unopened(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(5):
                archive.writestr(f"word/document{number}.xml", b"\0" * (20 * 2**20))
        assert (tmp_path / "bomb.docx").stat().st_size < 2**20
        _, (refused,) = read(tmp_path / "bomb.docx")
        assert refused.code == "file_too_large"

    @pytest.mark.parametrize("name", ["a.docx", "a.pdf"])
    def test_a_file_that_is_not_what_its_name_says_is_refused(self, tmp_path: Path, name: str) -> None:
        _, (refused,) = read(write(tmp_path / name, random.Random(1).randbytes(5_000)))
        assert (refused.file, refused.code) == (name, "unreadable_file")

    def test_the_text_of_a_pdf_is_read_by_page(self, tmp_path: Path) -> None:
        write_pdf(tmp_path / "bees.pdf", ["Bees fly by day.", "They rest at night."])
        rows, refused = read(tmp_path / "bees.pdf")
        assert refused == []
        assert [(row.prompt, row.completion, row.source) for row in rows] == [
            ("bees", "Bees fly by day.", "bees.pdf#page=1&paragraph=1"),
            ("bees", "They rest at night.", "bees.pdf#page=2&paragraph=1"),
        ]

    def test_paragraphs_of_one_page_have_places_of_their_own(self, tmp_path: Path) -> None:
        gap = ") Tj 0 -14 Td ( ) Tj 0 -14 Td ("
        write_pdf(tmp_path / "bees.pdf", [gap.join(["Bees fly by day.", "They rest at night.", "Who feeds them?"])])
        rows, _ = read(tmp_path / "bees.pdf")
        assert [(row.completion, row.source) for row in rows] == [
            ("Bees fly by day.", "bees.pdf#page=1&paragraph=1"),
            ("They rest at night.", "bees.pdf#page=1&paragraph=2"),
            ("Who feeds them?", "bees.pdf#page=1&paragraph=3"),
        ]

    def test_an_encrypted_pdf_is_refused(self, tmp_path: Path) -> None:
        write_pdf(tmp_path / "plain.pdf", ["Bees fly by day."])
        writer = pypdf.PdfWriter(clone_from=tmp_path / "plain.pdf")
        writer.encrypt("secret", algorithm="RC4-128")
        writer.write(tmp_path / "bees.pdf")
        _, (refused,) = read(tmp_path / "bees.pdf")
        assert refused.code == "encrypted_file"

    def test_a_pdf_of_images_is_refused(self, tmp_path: Path) -> None:
        writer = pypdf.PdfWriter()
        writer.add_blank_page(100, 100)
        writer.write(tmp_path / "scan.pdf")
        _, (refused,) = read(tmp_path / "scan.pdf")
        assert refused.code == "no_text"


class TestFolders:
    def test_a_folder_is_read_in_the_order_of_its_names(self, tmp_path: Path) -> None:
        write(tmp_path / "b.jsonl", lines({**GOOD, "source": "2"}))
        write(tmp_path / "a.jsonl", lines({**GOOD, "source": "1"}))
        write(tmp_path / "sub" / "c.txt", "The third file says this.")
        write(tmp_path / ".hidden" / "d.jsonl", "{")
        rows, refused = read(tmp_path)
        assert [row.source for row in rows] == ["1", "2", "sub/c.txt#line=1"]
        assert refused == []

    def test_a_file_that_cannot_be_read_stops_no_other(self, tmp_path: Path) -> None:
        write(tmp_path / "a.pdf", b"junk")
        write(tmp_path / "b.exe", b"junk")
        write(tmp_path / "c.jsonl", lines(GOOD))
        rows, refused = read(tmp_path)
        assert rows == [ROW]
        assert [(one.file, one.code) for one in refused] == [("a.pdf", "unreadable_file"), ("b.exe", "unknown_format")]

    def test_a_link_that_leaves_the_folder_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "outside.jsonl", lines(GOOD))
        write(tmp_path / "outside" / "a.jsonl", lines(GOOD))
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.jsonl").symlink_to(tmp_path / "outside.jsonl")
        (tmp_path / "in" / "folder").symlink_to(tmp_path / "outside")
        rows, refused = read(tmp_path / "in")
        assert (rows, [(one.file, one.code) for one in refused]) == ([], [("a.jsonl", "leaves_folder")])

    def test_a_hugging_face_dataset_directory_is_a_folder_like_any_other(self, tmp_path: Path) -> None:
        write(tmp_path / "dataset_dict.json", '{"splits": ["train"]}')
        write(tmp_path / "README.md", "# A dataset card that is no data at all")
        write(tmp_path / "train" / "dataset_info.json", "{}")
        write(tmp_path / "train" / "state.json", "{}")
        table = pa.Table.from_pylist([GOOD, GOOD])
        with pa.ipc.new_stream(str(tmp_path / "train" / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
        assert read(tmp_path) == ([ROW, ROW], [])

    def test_a_repository_of_the_hub_has_its_rows_read_and_its_card_not(self, tmp_path: Path) -> None:
        write(
            tmp_path / "README.md", "---\nlicense: cc-by-nc-4.0\npretty_name: Bees\n---\n\n# Bees\n\nA card is no data."
        )
        write(tmp_path / "LICENSE", "You may read this.")
        write(tmp_path / ".gitattributes", "*.parquet filter=lfs")
        (tmp_path / "data").mkdir()
        pq.write_table(
            pa.Table.from_pylist([{**GOOD, "license": own} for own in (None, "mit")]), tmp_path / "data" / "a.parquet"
        )
        rows, refused = read(tmp_path)
        assert (refused, [own_licence(row) for row in rows]) == ([], ["cc-by-nc-4.0", "mit"])
        assert [replace(row, extra="") for row in rows] == [ROW, ROW]

    def test_a_readme_with_front_matter_of_notes_is_read_as_notes(self, tmp_path: Path) -> None:
        write(tmp_path / "README.md", "---\ntags: [bees]\n---\n\n# Bees\n\nThey fly by day and rest at night.")
        rows, _ = read(tmp_path)
        assert rows[-1].completion == "They fly by day and rest at night."

    @pytest.mark.parametrize(
        ("front", "licence"),
        [
            ("license: other\nlicense_name: licenseref-mine", "licenseref-mine"),
            ("license: [mit, apache-2.0]", "mit AND apache-2.0"),
            ("license: unknown", ""),
            ("pretty_name: Bees", ""),
            ("license: null", ""),
            ("license: mit\ndate: 2024-02-31", "mit"),
            ("a: &a [mit, mit]\nb: &b [*a, *a]\nlicense: [*b, *b]", "unnamed licence"),
            ("license: {name: mit}", "unnamed licence"),
            (f"license: [{', '.join(['apache-2.0'] * 99)}, cc-by-nc-4.0]", "unnamed licence"),
        ],
    )
    def test_a_cards_licence_is_its_rows(self, tmp_path: Path, front: str, licence: str) -> None:
        write(tmp_path / "README.md", f"---\n{front}\n---\n# Bees")
        write(tmp_path / "a.jsonl", lines(GOOD))
        ((row,), refused) = read(tmp_path)
        assert (own_licence(row), refused) == (licence, [])

    def test_a_card_may_end_with_its_front_matter(self, tmp_path: Path) -> None:
        write(tmp_path / "README.md", "---\r\nlicense: mit\r\n---")
        write(tmp_path / "a.jsonl", lines(GOOD))
        assert [own_licence(row) for row in read(tmp_path)[0]] == ["mit"]

    @pytest.mark.parametrize(
        ("name", "told", "licence"),
        [
            ("croissant.json", {"license": "https://spdx.org/licenses/CC-BY-NC-4.0"}, "CC-BY-NC-4.0"),
            ("croissant.json", {"license": ["https://choosealicense.com/licenses/mit/", "odbl"]}, "mit AND odbl"),
            ("dataset_info.json", {"license": "cc-by-4.0"}, "cc-by-4.0"),
            ("dataset_infos.json", {"default": {"license": "cc-by-4.0"}}, "cc-by-4.0"),
            ("dataset_infos.json", {"default": {"license": ""}}, ""),
            ("croissant.json", ["no object"], ""),
        ],
    )
    def test_a_folder_without_a_card_has_the_licence_of_its_metadata(
        self, tmp_path: Path, name: str, told: object, licence: str
    ) -> None:
        write(tmp_path / name, json.dumps(told))
        write(tmp_path / "README.md", "---\npretty_name: Bees\n---\n# Bees")
        write(tmp_path / "a.jsonl", lines(GOOD))
        ((row,), refused) = read(tmp_path)
        assert (own_licence(row), refused) == (licence, [])

    def test_the_nearest_card_upwards_names_the_licence(self, tmp_path: Path) -> None:
        for folder, licence in (("", "mit"), ("nc/", "cc-by-nc-4.0"), ("nc/odd/", "other")):
            write(tmp_path / f"{folder}README.md", f"---\nlicense: {licence}\npretty_name: Bees\n---\nNo row.")
        write(tmp_path / "nc" / "silent" / "README.md", "---\npretty_name: Bees\n---\nNo row.")
        for folder in ("", "nc/", "nc/data/", "nc/odd/", "nc/silent/", "plain/"):
            write(tmp_path / f"{folder}a.jsonl", lines({**GOOD, "source": f"in {folder}"}))
        rows, refused = read(tmp_path)
        assert refused == []
        assert {row.source: own_licence(row) for row in rows} == {
            "in ": "mit", "in plain/": "mit", "in nc/": "cc-by-nc-4.0", "in nc/data/": "cc-by-nc-4.0", "in nc/odd/": "",
            "in nc/silent/": "cc-by-nc-4.0",
        }  # fmt: skip

    def test_a_licence_over_notes_makes_no_data_set_of_them(self, tmp_path: Path) -> None:
        said = "They fly by day and rest at night."
        write(tmp_path / "README.md", f"---\nlicense: cc-by-4.0\n---\n\n{said}")
        write(tmp_path / "LICENSE.md", said)
        write(tmp_path / "below" / "state.json", "{}")
        rows, refused = read(tmp_path)
        assert [row.source.split("#")[0] for row in rows if row.completion == said] == ["LICENSE.md", "README.md"]
        assert {own_licence(row) for row in rows} == {"cc-by-4.0"}
        assert [(one.file, one.code) for one in refused] == [("below/state.json", "unknown_format")]

    def test_a_data_sets_own_files_are_left_out_of_its_folder_alone(self, tmp_path: Path) -> None:
        write(tmp_path / "dataset_dict.json", "{}")
        write(tmp_path / "notes" / "README.md", "They fly by day and rest at night.")
        rows, refused = read(tmp_path)
        assert ([row.source for row in rows], refused) == (["notes/README.md#line=1"], [])

    def test_a_row_that_its_licence_makes_too_long_stops_no_other(self, tmp_path: Path) -> None:
        longest = {"prompt": "What is a?", "completion": "x" * (MAX_ROW_BYTES - 200)}
        while read(write(tmp_path / "a.jsonl", lines(longest, GOOD)).parent)[1] == []:
            longest["completion"] += "x"
        write(tmp_path / "a.jsonl", lines({**longest, "completion": longest["completion"][:-1]}, GOOD))
        assert len(read(tmp_path)[0]) == 2
        write(tmp_path / "README.md", "---\nlicense: cc-by-nc-4.0\n---\n")
        rows, refused = read(tmp_path)
        assert [own_licence(row) for row in rows] == ["cc-by-nc-4.0"]
        assert [(one.file, one.place, one.code) for one in refused] == [("a.jsonl", "line 1", "row_too_large")]

    def test_a_card_that_is_no_yaml_is_a_readme(self, tmp_path: Path) -> None:
        write(tmp_path / "README.md", "---\nlicense: [\n---\n\nThey fly by day and rest at night.")
        assert [row.completion for row in read(tmp_path)[0]][-1] == "They fly by day and rest at night."

    def test_a_missing_path_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match=r"rows\.jsonl"):
            list(read_drafts(tmp_path / "rows.jsonl"))

    def test_who_takes_all_or_nothing_is_told_the_first_refusal(self, tmp_path: Path) -> None:
        path = write(tmp_path / "rows.jsonl", lines(GOOD) + "{\n")
        with pytest.raises(InvalidInput, match=r"rows\.jsonl, line 2") as caught:
            list(only_rows(read_drafts(path)))
        assert (caught.value.code, caught.value.param) == ("malformed_row", "rows.jsonl, line 2")


def write_pdf(path: Path, pages: list[str]) -> None:
    """A PDF of one line of text a page, written by hand: pypdf makes none."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = [4 + 2 * number for number in range(len(pages))]
    listed = " ".join(f"{kid} 0 R" for kid in kids).encode()
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (listed, len(pages))
    objects += chain.from_iterable(_page(kid, text) for kid, text in zip(kids, pages, strict=True))
    data, places = b"%PDF-1.4\n", list[int]()
    for number, value in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, value)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    trailer = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, len(data))
    path.write_bytes(data + b"xref\n0 %d\n0000000000 65535 f \n" % count + table + trailer)


def _page(kid: int, text: str) -> Iterator[bytes]:
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    resources = b"/Resources << /Font << /F1 3 0 R >> >>"
    yield b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (kid + 1, resources)
    yield b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
