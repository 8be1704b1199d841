"""`openledger attribution` from files: shapes, signs, resume, and errors that say how to mend them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tiny_model import make_tiny_base

from openledger.attribution.__main__ import main
from openledger.attribution.audit import audited_quality, load_audit
from openledger.attribution.bank_folder import find_bank
from openledger.attribution.coalitions import Design
from openledger.core.errors import Corrupt

WORDS = ("alpha", "beta", "gamma", "delta", "omega", "sigma")
AUDIT = ("--coalitions", "8", "--twins", "1", "--audits", "4")
RECIPE = "rank: 2\nalpha: 8\nnum_epochs: 6\nbatch_rows: 8\nlearning_rate: 0.02\n"


def records(contributors=4, each=6):
    """Each contributor joins a pair of words of his own."""
    return [
        {
            "row_id": f"r{number:02}-{place}",
            "contributor": f"c{number}",
            "prompt": f"What does {WORDS[number]} {place} do?",
            "completion": f" It joins {WORDS[number]} with {WORDS[(number + 1) % contributors]}.",
        }
        for place in range(each)
        for number in range(contributors)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    make_tiny_base(folder / "base")
    write(folder / "rows.jsonl", records())
    queries = [{key: value for key, value in record.items() if key != "contributor"} for record in records()[:4]]
    write(folder / "queries.jsonl", [{**query, "row_id": f"q{n}"} for n, query in enumerate(queries)])
    (folder / "recipe.yaml").write_text(RECIPE)
    run(folder, "score", "--recipe", folder / "recipe.yaml", "--method", "index", "--out", folder / "first.npy")
    return folder


@pytest.fixture(scope="module")
def audited(files):
    """Six contributors, who have halves that a bank of eight coalitions leaves over."""
    folder = files / "six"
    folder.mkdir()
    shutil.copytree(files / "base", folder / "base")
    write(folder / "rows.jsonl", records(contributors=6, each=4))
    shutil.copy(files / "queries.jsonl", folder / "queries.jsonl")
    decoys = [{**record, "row_id": f"d{n}"} for n, record in enumerate(records(contributors=6, each=8)[-4:])]
    write(folder / "decoys.jsonl", decoys)
    (folder / "planted.json").write_text(json.dumps({"r00-0": "copy"}))
    # with a larger eps_root the run is smooth enough for its derivative to be checked by steps of 1 %
    (folder / "recipe.yaml").write_text(RECIPE + "eps_root: 1.0e-6\n")
    options = [*AUDIT, "--decoys", folder / "decoys.jsonl", "--check-replay", "--planted", folder / "planted.json"]
    recipe = ["--recipe", folder / "recipe.yaml", "--out", folder / "report.json"]
    assert run(folder, "evaluate", *options, *recipe) == 0
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(folder, command, *more, adapter="run", rows="rows.jsonl"):
    inputs = ["--base", folder / "base", "--adapter", folder / adapter, "--rows", folder / rows]
    return main([command, *map(str, [*inputs, "--queries", folder / "queries.jsonl", *more])])


def test_a_plain_adapter_is_scored_by_the_index(files, capsys):
    bare = files / "bare"
    shutil.copytree(files / "run", bare, ignore=shutil.ignore_patterns("run.json", "checkpoints", "bank"))
    assert run(files, "score", "--method", "index", "--out", files / "bare.npy", adapter="bare") == 0
    scores = np.load(files / "bare.npy")
    assert scores.dtype == np.float32
    assert scores.shape == (24, 4)
    own = np.array([[record["contributor"] == f"c{q}" for q in range(4)] for record in records()])
    assert scores[own].mean() > scores[~own].mean()
    told = json.loads((files / "bare.json").read_text())
    assert told["players"] == [record["row_id"] for record in records()]
    assert told["quantity"] == "this_run"
    assert told["unit"].startswith("relative, not nats")
    assert "bare has no run.json" in told["rows"]
    assert "rows it never saw get scores too" in capsys.readouterr().err
    assert run(files, "score", "--method", "bank", "--out", files / "x.npy", adapter="bare") != 0
    assert "--method index" in capsys.readouterr().err


def test_bank_and_estimate_train_what_is_missing_and_agree(files, capsys):
    options = ["--coalitions", "8", "--twins", "1"]
    assert run(files, "score", "--method", "bank", *options, "--dry-run", "--out", files / "bank.npy") == 0
    assert capsys.readouterr().out.count("coalition-") == 8
    assert run(files, "score", "--method", "bank", *options, "--no-train", "--out", files / "bank.npy") != 0
    assert "not trained" in capsys.readouterr().err
    errors = ["--errors", files / "errors.npy"]
    assert run(files, "score", "--method", "bank", *options, *errors, "--out", files / "bank.npy") == 0
    assert "coalition-007 trained, 8 of 9" in capsys.readouterr().err
    told = json.loads((files / "bank.json").read_text())
    assert (told["unit"].split(" ")[0], told["rows"]) == ("nats", "checked against run.json")
    bank = np.load(files / "bank.npy")
    assert bank.shape == np.load(files / "errors.npy").shape == (4, 4)
    assert (np.load(files / "errors.npy") > 0).all()
    assert bank.argmax(axis=0).tolist() == [0, 1, 2, 3]
    assert run(files, "score", "--method", "estimate", *options, "--out", files / "estimate.npy") == 0
    assert "trained" not in capsys.readouterr().err
    rows = np.load(files / "estimate.npy")
    assert rows.shape == (24, 4)
    sums = np.stack([rows[n::4].sum(axis=0) for n in range(4)])
    assert sums == pytest.approx(bank, rel=1e-3, abs=1e-5)


def test_replay_gives_one_column_and_says_how_exact_it_is(files):
    (files / "weights.json").write_text("[1, 0, 0, 0]")
    options = ["--method", "replay", "--weights", files / "weights.json", "--out", files / "replay.npy"]
    assert run(files, "score", *options) == 0
    scores = np.load(files / "replay.npy")
    assert scores.shape == (24, 1)
    assert scores[0::4].sum() > max(scores[n::4].sum() for n in (1, 2, 3))
    assert json.loads((files / "replay.json").read_text())["quality"]["deviation"] == pytest.approx(0, abs=1e-6)


def test_evaluate_reports_against_trainings_that_nothing_has_seen(audited):
    report = json.loads((audited / "report.json").read_text())
    assert report["halves"] == {"contributors": 4, "rows": 4}
    assert 0 < report["contributors"]["ceiling"]["per_answer"] <= 1
    assert report["contributors"]["bank"]["per_answer"] > 0.3
    assert report["leave_one_out"]["bank"] > 0
    assert report["coverage"]["pairs"] == 32
    assert report["replay"]["error_at_1_percent"] < 0.1
    assert report["replay"]["error_at_10_percent"] > report["replay"]["error_at_1_percent"]
    assert report["replay"]["deviation"] == pytest.approx(0, abs=1e-6)
    assert set(report["rows"]) == {"ceiling", "index", "estimate"}
    assert report["decoys"]["ratio"] > 0
    assert 0 <= report["planted"]["copy_recall"] <= 1


def test_an_audit_of_a_bank_that_leaves_no_halves_over_says_what_to_change(files, capsys):
    write(files / "three.jsonl", records(contributors=3, each=2))
    recipe = ["--recipe", files / "recipe.yaml"]
    assert run(files, "evaluate", *AUDIT, *recipe, "--json", adapter="three", rows="three.jsonl") != 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["param"]) == ("too_few_halves", "coalitions")
    assert error["fix"] == "fewer --coalitions, or more contributors"


def test_an_audit_stays_with_its_adapter_and_is_quoted(audited):
    digest = json.loads((audited / "run" / "run.json").read_text())["adapter_digest"]
    found = load_audit(audited / "run", digest)
    kept = find_bank(audited / "run", digest)
    few = audited_quality(found, kept)
    assert not {"audit_error_scale", "audit_coverage_90"} & set(few)  # of 32 pairs
    quoted = audited_quality({**found, "coverage": {**found["coverage"], "pairs": 400.0}}, kept)
    assert quoted.keys() - few.keys() == {"audit_error_scale", "audit_coverage_90"}
    assert float(quoted["audit_error_scale"]) == pytest.approx(found["coverage"]["error_scale"], abs=1e-3)
    assert float(quoted["audit_lds_contributors"]) == pytest.approx(
        found["contributors"]["bank"]["per_answer"], abs=1e-3
    )
    with pytest.raises(Corrupt):
        load_audit(audited / "run", "0" * 64)
    assert (load_audit(audited, digest), audited_quality({}, None)) == ({}, {"audit": "none"})


def test_an_audit_finishes_the_bank_and_names_it(audited):
    digest = json.loads((audited / "run" / "run.json").read_text())["adapter_digest"]
    kept, found = find_bank(audited / "run", digest), load_audit(audited / "run", digest)
    assert (len(kept.coalitions), len(kept.twins)) == (8, 1)
    assert found["instrument"] == {
        "bank": kept.digest,
        "coalitions": 8,
        "twins": 1,
        "views": [f"{twin}epoch-{epoch}" for twin in ("", "twin-1-") for epoch in (1, 2, 3)],
    }


@pytest.mark.parametrize("bank", ["none", "another", "unnamed"])
def test_an_attribution_by_another_instrument_quotes_nothing_of_the_audited_bank(audited, bank):
    digest = json.loads((audited / "run" / "run.json").read_text())["adapter_digest"]
    kept, found = find_bank(audited / "run", digest), load_audit(audited / "run", digest)
    if bank == "another":
        smaller = Design(groups=kept.design.groups, members_MG=kept.design.members_MG[:6])
        kept = replace(kept, design=smaller, coalitions=kept.coalitions[:6])
    elif bank == "unnamed":  # an audit of before the instrument was recorded
        found = {name: value for name, value in found.items() if name != "instrument"}
    quoted = audited_quality(found, None if bank == "none" else kept)
    assert float(quoted["audit_lds_index_contributors"]) == pytest.approx(
        found["contributors"]["index"]["per_answer"], abs=1e-3
    )
    ours = {"audit_lds_contributors", "audit_lds_sum", "audit_lds_rows", "audit_coverage_90", "audit_error_scale"}
    assert not ours & set(quoted)
    assert ("audit_views" in quoted) == (bank != "unnamed")


def test_an_audit_of_another_bank_leaves_the_one_that_settlements_use(audited, capsys):
    before = (audited / "run" / "bank" / "bank.json").read_bytes()
    smaller = ["--coalitions", "6", "--twins", "1", "--audits", "4", "--out", audited / "second.json"]
    other = shutil.copytree(audited / "run", audited / "again")
    assert run(audited, "evaluate", *smaller, adapter="again") == 0
    assert "another bank, which stays" in capsys.readouterr().err
    assert (other / "bank" / "bank.json").read_bytes() == before


def test_an_audit_without_sizes_is_of_the_bank_that_is_there(audited, capsys):
    assert run(audited, "evaluate", "--audits", "4", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["would_train"] == []


def test_an_audit_of_a_bank_without_twins_compares_removals_with_the_run_itself(audited):
    found = ["--coalitions", "8", "--twins", "0", "--audits", "4", "--out", audited / "no_twins.json"]
    shutil.copytree(audited / "run", audited / "no-twins")
    assert run(audited, "evaluate", *found, adapter="no-twins") == 0
    report = json.loads((audited / "no_twins.json").read_text())
    assert report["instrument"]["twins"] == 0
    assert report["leave_one_out"]["bank"] > 0


def test_plan_reads_contributors_alone(files, capsys):
    assert main(["plan", "--rows", str(files / "rows.jsonl"), "--budget", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_groups"] == 8
    assert main(["plan", "--rows", str(files / "rows.jsonl"), "--fees", "10"]) != 0
    assert "--training-cost" in capsys.readouterr().err
    fees = ["--fees", "15", "--share", "1", "--training-cost", "0.25"]
    assert main(["plan", "--rows", str(files / "rows.jsonl"), *fees]) != 0
    assert "--answers" in capsys.readouterr().err
    assert main(["plan", "--rows", str(files / "rows.jsonl"), *fees, "--answers", "100000", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert "replay" not in plan["instruments"]  # the same fees buy one of fewer answers
    assert main(["plan", "--rows", str(files / "rows.jsonl"), *fees, "--answers", "1", "--json"]) == 0
    assert "replay" in json.loads(capsys.readouterr().out)["instruments"]


def test_a_dry_run_before_there_is_an_adapter_reads_the_recipe_and_counts(files, capsys):
    recipe = ["--recipe", files / "recipe.yaml", "--coalitions", "8", "--twins", "1", "--out", files / "x.npy"]
    assert run(files, "score", "--method", "estimate", "--dry-run", "--json", *recipe, adapter="none") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["would_train"], told["trainings"]) == ({"adapter": 1, "coalitions": 8, "twins": 1}, 10)
    assert (told["rows"], told["epochs"]) == (24, 6)
    (files / "wrong.yaml").write_text("epochs: 3\n")
    assert run(files, "score", "--dry-run", "--recipe", files / "wrong.yaml", "--out", files / "x.npy", adapter="none")
    assert "no such recipe setting: epochs" in capsys.readouterr().err
    assert not (files / "none").exists()


def test_rows_with_other_ids_are_refused_before_the_base_is_looked_for(files, capsys):
    write(files / "others.jsonl", [{**record, "row_id": f"x{n}"} for n, record in enumerate(records())])
    inputs = ["--base", "/no/such/base", "--adapter", files / "run", "--rows", files / "others.jsonl"]
    more = ["--queries", files / "queries.jsonl", "--out", files / "x.npy", "--json"]
    assert main(["score", *map(str, [*inputs, *more])]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "other_rows"
    assert "24 of its 24 rows are missing" in error["message"]
    assert "jobs/rows.py" in error["fix"]


def test_other_rows_and_wrong_weights_are_refused(files, capsys):
    write(files / "fewer.jsonl", records()[1:])
    assert run(files, "score", "--method", "bank", "--out", files / "x.npy", rows="fewer.jsonl") != 0
    assert "other rows" in capsys.readouterr().err
    (files / "weights.json").write_text("[1, 2]")
    options = ["--method", "replay", "--weights", files / "weights.json", "--out", files / "x.npy"]
    assert run(files, "score", *options, "--json") != 0
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_weights"
    assert not (files / "x.npy").exists()
