"""An adapter that is sold is audited over the cluster, on its held-out rows, and its card says what was found."""

from pathlib import Path

import pytest
from tiny_model import make_tiny_base
from trained_world import World, in_this_process, rows_of

from openledger.adapters.card import load_card
from openledger.attribution.audit import audited_quality, load_audit
from openledger.attribution.bank_folder import find_bank
from openledger.core.errors import NotFound
from openledger.platform import auditing

PEOPLE = [f"ctr_{number}" for number in range(4)]
ROWS = rows_of(*PEOPLE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An adapter with a bank of six coalitions, of eight contributors, and one without; from here on Ray is Ray."""
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        found = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
        found.bank(found.train("one", ROWS)[0])
        found.train("bare", ROWS)
        found.folders = {name: Path(found.registry.get(name).folder) for name in ("one", "bare")}
    return found


def plan(world, name="one", rows=ROWS, **options):
    return auditing.plan_adapter_audit(world.folders[name], world.base, rows, num_halves=4, **options)


def test_an_adapter_without_a_bank_says_how_it_gets_one(world):
    with pytest.raises(NotFound) as caught:
        plan(world, "bare")
    assert (caught.value.code, "--bank 32" in caught.value.fix) == ("no_bank", True)
    planned = plan(world, "bare", num_coalitions=6)
    assert planned.finishes_bank
    assert len(planned.missing) == len(planned.bank.members) + len(planned.audit.members)
    assert find_bank(world.folders["bare"], load_card(world.folders["bare"]).digest) is None


def test_rows_that_are_gone_are_named_before_anything_is_trained(world):
    with pytest.raises(NotFound) as caught:
        plan(world, rows=ROWS[5:])
    assert caught.value.code == "rows_gone"


def test_nothing_held_out_is_nothing_to_ask(world):
    path = world.folders["one"] / "held_out.json"
    kept = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(NotFound) as caught:
            plan(world)
    finally:
        path.write_bytes(kept)
    assert caught.value.code == "no_held_out"


@pytest.mark.usefixtures("cluster")
def test_what_is_missing_is_trained_over_ray_and_the_report_is_quoted_and_stands_on_the_card(world):
    folder, lines = world.folders["one"], []
    digest = load_card(folder).digest
    planned = plan(world)
    # four halves of contributors and of rows, each in two orders, and one run without each of eight; the bank is there
    assert len(planned.missing) == 4 * 2 + 4 * 2 + 8
    found = auditing.audit_adapter(planned, tell=lines.append)
    assert [line for line in lines if line.endswith("24 of 24")]
    assert plan(world).missing == []
    kept = find_bank(folder, digest)
    assert found["instrument"]["bank"] == kept.digest
    assert -1 <= found["leave_one_out"]["bank"] <= 1  # against the run itself: this bank has no twins
    quoted = audited_quality(load_audit(folder, digest), kept)
    assert float(quoted["audit_lds_contributors"]) == pytest.approx(
        found["contributors"]["bank"]["per_answer"], abs=1e-3
    )
    card = load_card(folder)
    assert card.evaluation["audit_lds_contributors"] == found["contributors"]["bank"]["per_answer"]
    assert card.evaluation["audit_leave_one_out"] == found["leave_one_out"]["bank"]
    assert card.digest == digest
