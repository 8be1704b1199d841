"""What the quickstart contributes: enough rows, in a fixed order, and three who cheat."""

from openledger.core.clock import SystemClock
from openledger.core.signing import SigningKey
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.shard import ShardHost
from openledger.platform.demonstration import COPIED, DATANETS, SPLIT, contributors, new_questions


def everybody():
    return [person for datanet in DATANETS for person in contributors(datanet)]


def test_honest_contributors_bring_more_than_two_thousand_rows_to_four_datanets():
    assert len(DATANETS) >= 4
    assert sum(len(person.drafts) for person in everybody() if person.kind == "honest") >= 2200


def test_more_than_two_thousand_rows_pass_the_gate_and_hardly_one_of_the_bad(tmp_path):
    datanets = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0"), ShardHost(tmp_path / "shard-1")], SystemClock())
    kinds = {}
    for datanet in DATANETS:
        datanets.create(datanet.name, datanet.summary, "user:owner")
        for person in contributors(datanet):
            key = SigningKey.generate()
            kinds[datanets.register_contributor(key.public_key, person.name).contributor_id] = person.kind
            datanets.contribute(sign_contribution(key, datanet.name, person.drafts, "once"))
    counts = {kind: [0, 0] for kind in ("honest", "copier", "spammer", "splitter")}
    for datanet in DATANETS:
        for numbers in datanets.statistics(datanet.name):
            counts[kinds[numbers.contributor_id]][0] += numbers.accepted
            counts[kinds[numbers.contributor_id]][1] += numbers.accepted + numbers.rejected + numbers.review
    assert sum(accepted for accepted, _ in counts.values()) >= 2000
    assert counts["copier"][0] <= 0.1 * counts["copier"][1] > 0
    assert counts["spammer"][0] <= 0.1 * counts["spammer"][1] > 0
    datanets.close()


def test_the_copier_comes_after_whom_he_copies_and_changes_little():
    people = contributors(DATANETS[0])
    names = [person.name for person in people]
    copier, original = people[names.index("copier")], people[names.index(COPIED)]
    assert names.index("copier") > names.index(COPIED)
    for copy, row in zip(copier.drafts, original.drafts, strict=False):
        assert copy.completion != row.completion
        assert abs(len(copy.completion.split()) - len(row.completion.split())) <= 1


def test_the_splitter_shows_one_source_under_three_names_without_repeating_a_row():
    parts = [person for person in everybody() if person.kind == "splitter"]
    rows = [draft for person in parts for draft in person.drafts]
    assert {person.of for person in parts} == {SPLIT}
    assert (len(parts), len(set(rows))) == (3, len(rows))


def test_contributions_are_the_same_every_time():
    assert contributors(DATANETS[1]) == contributors(DATANETS[1])


def test_new_questions_come_from_packages_nobody_contributes():
    for datanet in DATANETS:
        questions = new_questions(datanet, 25)
        assert len(questions) == 25
        assert {draft.source.split(".")[0] for draft in questions} <= set(datanet.new)
