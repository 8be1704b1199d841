"""Rows and queries as JSON lines: encoded as the tokenizer does by default, and refused with the line's number."""

import json
from dataclasses import replace

import pytest
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import find_base_model, load_tokenizer
from openledger.attribution.records import contributors_of, read_examples, record_of
from openledger.core.errors import InvalidInput, NotFound
from openledger.training.examples import encode_row

PAIR = {"row_id": "a", "contributor": "ann", "prompt": "What does alpha do?", "completion": " It joins."}
TEXT = {"row_id": "b", "contributor": "bob", "text": "It joins alpha with beta."}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def write(folder, *records):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


def test_prompts_are_masked_and_a_text_is_predicted_but_for_its_first_token(base, tmp_path):
    tokenizer = load_tokenizer(base)
    pair, text = read_examples(write(tmp_path, PAIR, TEXT), base)
    prompt, completion = tokenizer(PAIR["prompt"])["input_ids"], tokenizer(PAIR["completion"])["input_ids"]
    assert pair.ids == (*prompt, *completion)
    assert pair.num_prompt == len(prompt)
    assert text.ids == tuple(tokenizer(TEXT["text"])["input_ids"])
    assert text.num_prompt == 1
    assert contributors_of([text, pair]) == ["ann", "bob"]


def test_queries_need_no_contributor_and_rows_do(base, tmp_path):
    path = write(tmp_path, {"row_id": "q", "text": "It joins."})
    assert read_examples(path, base, queries=True)[0].contributor_id == ""
    with pytest.raises(InvalidInput, match="'contributor' is missing"):
        read_examples(path, base)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ({**PAIR, "completion": ""}, "'completion' is missing, empty"),
        ({**PAIR, "prompt": 3}, "'prompt'"),
        ({**TEXT, "text": "It joins alpha " * 100}, "128 positions"),
        ({**PAIR, "completion": " It joins alpha." * 100}, "128 positions"),
        ({**TEXT, "text": "I"}, "no token to predict"),
    ],
)
def test_a_record_that_cant_be_used_is_named_by_its_line(base, tmp_path, record, said):
    with pytest.raises(InvalidInput, match=said) as caught:
        read_examples(write(tmp_path, TEXT, record), base)
    assert "rows.jsonl:2" in caught.value.message


def test_a_row_id_that_is_there_twice_is_refused(base, tmp_path):
    with pytest.raises(InvalidInput, match="twice"):
        read_examples(write(tmp_path, TEXT, TEXT), base)


def test_a_missing_and_an_empty_file_are_refused(base, tmp_path):
    with pytest.raises(NotFound):
        read_examples(tmp_path / "none.jsonl", base)
    with pytest.raises(InvalidInput, match="no records"):
        read_examples(write(tmp_path), base)


def test_a_row_of_a_datanet_is_written_so_that_it_is_read_as_the_same_tokens(tmp_path):
    base = find_base_model()
    tokenizer = load_tokenizer(base)
    rows = [replace(row, completion=f"{row.completion}  Two spaces, {n}.") for n, row in enumerate(tiny_rows())]
    examples = [encode_row(tokenizer, row) for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record_of(tokenizer, example)) + "\n" for example in examples))
    assert read_examples(path, base) == examples
