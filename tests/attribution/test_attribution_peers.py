"""The peers' benchmark imports nothing of OpenLedger: what it scores must still be the same rows and the same loss."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny_model import make_tiny_base

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.records import encode_record
from openledger.training.examples import collate, row_losses

ROOT = Path(__file__).parents[2]
RECORDS = [
    {"row_id": "a", "contributor": "c", "prompt": "What does alpha do?\n", "completion": "It joins alpha with beta.\n"},
    {"row_id": "b", "contributor": "c", "prompt": "beta\n", "completion": "It joins.\n"},
    {"row_id": "c", "contributor": "c", "text": "It joins gamma with delta."},
]


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("attribution_peers", ROOT / "benchmarks" / "attribution_peers.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def test_peers_are_given_the_same_tokens_and_the_same_prompts(peers, base):
    tokenizer = load_tokenizer(base)
    for record in RECORDS:
        ours, theirs = encode_record(tokenizer, record, "here", 128), peers.encode(tokenizer, record)
        assert theirs.ids == ours.ids
        assert [label == peers.IGNORED for label in theirs.labels] == [
            at < ours.num_prompt for at in range(len(ours.ids))
        ]


def test_peers_are_given_the_same_loss(peers, base):
    tokenizer, model = load_tokenizer(base), load_model(base)
    ours = row_losses(model, collate([encode_record(tokenizer, record, "here", 128) for record in RECORDS]))
    batch = peers.collate([peers.encode(tokenizer, record) for record in RECORDS])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    assert torch.allclose(peers.losses(logits, batch["labels"]), ours, atol=1e-5)


def test_a_rank_correlation_has_the_sign_of_the_scores(peers):
    scores = torch.tensor([0.1, 3.0, -2.0, 7.0]).numpy()
    assert peers.rank_correlation(scores, scores) == pytest.approx(1)
    assert peers.rank_correlation(scores, -scores) == pytest.approx(-1)
