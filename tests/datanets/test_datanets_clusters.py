"""Evidence clusters: who was first, what counts as a copy, and who is credited."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Conflict, InvalidInput
from openledger.datanets.clusters import (
    ClusterRow,
    ClusterRule,
    EvidenceClusters,
    WordWeights,
    cluster_rows,
    credited,
    row_words,
)
from openledger.datanets.docstrings import package_rows


def _row(row_id: str, contributor: str, order: int, prompt: str, completion: str) -> ClusterRow:
    return ClusterRow(row_id=row_id, contributor_id=contributor, order=order, prompt=prompt, completion=completion)


@pytest.fixture(scope="module")
def honest() -> list[ClusterRow]:
    """300 rows of three modules by three contributors, each answer once."""
    rows, seen = [], set()
    for contributor in ("email", "tarfile", "logging"):
        for row in package_rows(contributor)[:120]:
            if row.completion not in seen:
                seen.add(row.completion)
                rows.append(_row(row.source, contributor, len(rows), row.prompt, row.completion))
    return rows


@pytest.fixture(scope="module")
def weights(honest: list[ClusterRow]) -> WordWeights:
    return WordWeights.of(honest)


ROW = _row(
    "original", "ada", 10, "What does the function tarfile.open(name, mode, fileobj) do?",
    "Open a tar archive for reading, writing or appending. Return an appropriate TarFile class.",
)  # fmt: skip


def _copy(completion: str, prompt: str = ROW.prompt, contributor: str = "bob", order: int = 20) -> ClusterRow:
    return _row("copy", contributor, order, prompt, completion)


class TestCopies:
    @pytest.mark.parametrize(
        ("prompt", "completion"),
        [
            (ROW.prompt, ROW.completion),
            (ROW.prompt.upper(), f"  {ROW.completion.upper()}"),
            (ROW.prompt, ROW.completion.replace("a", "\u00e0")),
            (ROW.prompt, ROW.completion.replace("e", "e\u200b")),
            (ROW.prompt, ROW.completion.replace("archive", "bundle").replace("appropriate", "matching")),
            ("Tell me about open in tarfile.", ROW.completion),
            (ROW.prompt, " ".join(reversed(ROW.completion.split()))),
            (ROW.prompt, f"{ROW.completion} Close the archive when everything that was asked for has been written."),
            (ROW.prompt, " ".join(ROW.completion.split()[:8])),
        ],
        ids=["verbatim", "case", "accents", "invisible", "words", "question", "order", "padded", "part"],
    )
    def test_a_later_copy_joins_the_original(self, weights: WordWeights, prompt: str, completion: str) -> None:
        clusters = EvidenceClusters(weights)
        clusters.add([ROW, _copy(completion, prompt)])
        assert clusters.representatives() == {"original": "original", "copy": "original"}

    def test_whoever_was_first_represents_whatever_the_copy_is_called(self, weights: WordWeights) -> None:
        clusters = EvidenceClusters(weights)
        clusters.add([ROW, _copy(ROW.completion, order=9)])
        assert clusters.representatives() == {"copy": "copy", "original": "copy"}

    def test_honest_rows_stay_apart(self, honest: list[ClusterRow]) -> None:
        chosen = cluster_rows(honest)
        contributors = {row.row_id: row.contributor_id for row in honest}
        joined = [row for row, by in chosen.items() if contributors[row] != contributors[by]]
        assert len(honest) > 200
        assert joined == []

    def test_edited_copies_of_a_whole_datanet_are_found(self, honest: list[ClusterRow], weights: WordWeights) -> None:
        draw = random.Random(1)
        vocabulary = [word for row in honest for word in row.completion.split()]
        copies = []
        for row in honest:
            told = row.completion.split()
            for place in draw.sample(range(len(told)), max(1, len(told) // 5)):
                told[place] = draw.choice(vocabulary)
            copies.append(
                replace(row, row_id=f"copy {row.row_id}", contributor_id="bob", order=1000, completion=" ".join(told))
            )
        clusters = EvidenceClusters(weights)
        clusters.add([*honest, *copies])
        chosen = clusters.representatives()
        found = sum(chosen[copy.row_id] in {row.row_id for row in honest} for copy in copies)
        assert found >= 0.97 * len(copies)

    def test_asking_first_and_answering_nothing_takes_no_row(
        self, honest: list[ClusterRow], weights: WordWeights
    ) -> None:
        stubs = [
            replace(
                row, row_id=f"stub {row.row_id}", contributor_id="bob", order=-1, completion="It does what it says."
            )
            for row in honest
        ]
        clusters = EvidenceClusters(weights)
        clusters.add([*stubs, *honest])
        chosen = clusters.representatives()
        assert [row.row_id for row in honest if chosen[row.row_id].startswith("stub ")] == []

    def test_ones_own_rows_on_related_things_stay_and_ones_own_repetition_joins(self, weights: WordWeights) -> None:
        lower = _row("lower", "ada", 1, "What does the method Matrix.is_lower() do?", "Check if matrix is a lower one.")
        upper = _row(
            "upper", "ada", 2, "What does the method Matrix.is_upper() do?", "Check if matrix is an upper one."
        )
        again = replace(lower, row_id="again", order=3, completion="Check if a matrix is a lower one.")
        assert cluster_rows([lower, upper, again], weights=weights) == {
            "lower": "lower", "upper": "upper", "again": "lower"
        }  # fmt: skip

    def test_ones_own_row_in_capitals_joins_though_its_identifiers_no_longer_come_apart(
        self, weights: WordWeights
    ) -> None:
        row = _row("row", "ada", 1, "What does DataFrame.toHtml do?", "Render a DataFrame with an HtmlFormatter.")
        shouted = replace(row, row_id="shouted", order=2, prompt=row.prompt.upper(), completion=row.completion.upper())
        assert cluster_rows([row, shouted], weights=weights)["shouted"] == "row"

    def test_rows_of_signs_alone_are_the_same_when_they_are_equal(self, weights: WordWeights) -> None:
        rows = [_row("a", "ada", 1, "?", "->"), _row("b", "bob", 2, "?", "=>"), _row("c", "bob", 3, "?", " ->")]
        assert cluster_rows(rows, weights=weights) == {"a": "a", "b": "b", "c": "a"}


class TestStars:
    def test_a_chain_of_edits_does_not_join_what_lies_at_its_ends(self) -> None:
        """Each text has half of the last one's words; only neighbours are similar."""
        told = [f"{'abcdefghijklmnopqrstuvwxyz'[n]}word" for n in range(26)]
        rows = [
            _row(f"r{n}", f"ctr_{n}", n, f"Question {told[n]}?", " ".join(told[n : n + 10])) for n in range(0, 16, 2)
        ]
        chosen = cluster_rows(rows, ClusterRule(row_milli=500, answer_milli=500, floor_milli=200))
        assert chosen == {
            "r0": "r0",
            "r2": "r0",
            "r4": "r4",
            "r6": "r4",
            "r8": "r8",
            "r10": "r8",
            "r12": "r12",
            "r14": "r12",
        }

    @given(st.data())
    def test_the_order_of_feeding_changes_nothing(self, data: st.DataObject) -> None:
        vocabulary = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"]
        texts = st.lists(st.sampled_from(vocabulary), min_size=1, max_size=6).map(" ".join)
        rows = [
            _row(
                f"r{n}",
                f"ctr_{data.draw(st.integers(0, 2))}",
                data.draw(st.integers(0, 3)),
                data.draw(texts),
                data.draw(texts),
            )
            for n in range(data.draw(st.integers(1, 8)))
        ]
        weights = WordWeights.of(rows)
        one, other = EvidenceClusters(weights), EvidenceClusters(weights)
        one.add(rows)
        for row in data.draw(st.permutations(rows)):
            other.add([row])
        assert list(one.representatives().items()) == list(other.representatives().items())

    @given(st.data())
    def test_no_similar_row_is_missed_by_the_search(self, data: st.DataObject) -> None:
        """The index's answer equals that of an index which is asked about one row at a time."""
        vocabulary = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st"]
        texts = st.lists(st.sampled_from(vocabulary), min_size=1, max_size=7).map(" ".join)
        rows = [_row(f"r{n}", f"ctr_{n % 3}", n, data.draw(texts), data.draw(texts)) for n in range(8)]
        weights = WordWeights.of(rows)
        clusters = EvidenceClusters(weights)
        clusters.add(rows)
        for row in rows:
            assert set(clusters.similar(row)) == {
                other.row_id for other in rows if other is not row and _alike(other, row, weights)
            }

    def test_no_similar_answer_is_missed_under_long_questions_that_share_nothing(self) -> None:
        draw, vocabulary = random.Random(2), ["ab", "cd", "ef", "gh", "ij", "kl"]
        rows = [
            _row(
                f"r{n}",
                f"ctr_{n % 5}",
                n,
                " ".join(f"w{n}x{k}" for k in range(40)),
                " ".join(draw.sample(vocabulary, 3)),
            )
            for n in range(60)
        ]
        weights = WordWeights.of(rows)
        clusters = EvidenceClusters(weights)
        clusters.add([replace(row, completion=row.completion[: draw.choice((5, 8))]) for row in rows])
        pairs = [
            (row, other) for row in clusters._rows.values() for other in clusters._rows.values() if row is not other
        ]
        assert sum(other.row_id in clusters._similar[row.row_id] for row, other in pairs) == sum(
            _same_answer(row.answer, other.answer, weights) and row.contributor_id != other.contributor_id
            for row, other in pairs
        )

    def test_a_row_fed_twice_changes_nothing_and_an_id_of_two_rows_is_refused(self, weights: WordWeights) -> None:
        clusters = EvidenceClusters(weights)
        clusters.add([ROW, ROW])
        assert len(clusters) == 1
        with pytest.raises(Conflict) as caught:
            clusters.add([replace(ROW, contributor_id="bob")])
        assert caught.value.code == "cluster_row_differs"


def _same_answer(one: frozenset[str], other: frozenset[str], weights: WordWeights) -> bool:
    return 1000 * weights.total(one & other) >= ClusterRule().answer_milli * weights.total(one | other)


def _alike(one: ClusterRow, other: ClusterRow, weights: WordWeights) -> bool:
    """The rule of the module's docstring in floating point, without any index."""

    def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
        return weights.total(a & b) / max(1, weights.total(a | b))

    def contained(a: frozenset[str], b: frozenset[str]) -> float:
        return weights.total(a & b) / max(1, weights.total(a))

    earlier, later = sorted((one, other), key=lambda row: (row.order, row.row_id))
    if (earlier.prompt, earlier.completion) == (later.prompt, later.completion):
        return True
    questions = row_words(earlier.prompt), row_words(later.prompt)
    answers = row_words(earlier.completion), row_words(later.completion)
    rows = questions[0] | answers[0], questions[1] | answers[1]
    rule, nothing = ClusterRule(), 1e-12
    answer, row = jaccard(*answers) + nothing, jaccard(*rows) + nothing
    if answer < rule.floor_milli / 1000:
        return False
    if earlier.contributor_id == later.contributor_id:
        return jaccard(*questions) ** 2 * answer + nothing >= (rule.own_milli / 1000) ** 3
    inside = (contained(*questions) * contained(*answers)) ** 0.5 + nothing
    return (
        answer >= rule.answer_milli / 1000
        or row >= rule.row_milli / 1000
        or (row >= rule.floor_milli / 1000 and inside >= rule.contained_milli / 1000)
    )


class TestWeights:
    def test_flooding_a_word_changes_nothing_while_the_table_stands(self, weights: WordWeights) -> None:
        clusters = EvidenceClusters(weights)
        clusters.add([ROW])
        flood = [_row(f"f{n}", "bob", 30 + n, f"archive {n}?", f"archive tar appending {n}") for n in range(200)]
        copy = _copy(ROW.completion.replace("archive", "bundle"))
        before = clusters.similar(copy)
        clusters.add(flood)
        assert before == ["original"] == [row for row in clusters.similar(copy) if row == "original"]

    def test_a_word_of_every_row_weighs_least_and_an_unknown_one_most(self, weights: WordWeights) -> None:
        assert 0 < weights.of_word("what") < weights.of_word("archive") <= weights.of_word("never-heard")

    def test_identifiers_are_taken_apart(self) -> None:
        assert row_words("DataFrame.to_html(max_rows)") == {"data", "frame", "to", "html", "max", "rows"}


class TestRule:
    @pytest.mark.parametrize("wrong", [{"row_milli": 0}, {"own_milli": 1001}, {"floor_milli": 600}, {"own_milli": 300}])
    def test_thresholds_that_make_no_sense_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(InvalidInput) as caught:
            ClusterRule(**wrong)
        assert caught.value.code == "invalid_cluster_rule"


REPRESENTATIVES = {"a1": "a1", "a2": "a1", "b1": "a1", "b2": "b2", "c1": "c1"}
CONTRIBUTORS = {"a1": "ada", "a2": "ada", "b1": "bob", "b2": "bob", "c1": "cyd"}


class TestCredit:
    def test_the_original_earns_what_copies_took_and_own_repetitions_count_once(self) -> None:
        scores = {"a1": 50, "a2": 40, "b1": 30, "b2": 7, "c1": -5}
        assert credited(scores, REPRESENTATIVES, CONTRIBUTORS) == {"ada": 80, "bob": 7, "cyd": -5}

    def test_a_copier_alone_is_named_with_nothing(self) -> None:
        assert credited({"a1": 5, "b1": 3}, REPRESENTATIVES, CONTRIBUTORS) == {"ada": 8, "bob": 0}

    def test_a_score_of_no_known_row_is_refused(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            credited({"z9": 5}, REPRESENTATIVES, CONTRIBUTORS)
        assert caught.value.code == "unknown_row"

    def test_sending_a_row_many_times_adds_nothing_where_representatives_alone_are_trained_on(
        self, weights: WordWeights
    ) -> None:
        own = [replace(ROW, row_id=f"own{n}", order=20 + n) for n in range(5)]
        chosen = cluster_rows([ROW, *own], weights=weights)
        trained = [row for row in chosen if chosen[row] == row]
        assert trained == ["original"]
