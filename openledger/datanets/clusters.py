"""Evidence clusters: rows that say the same thing in nearly the same words, across Datanets, and who is credited.

Owns the rule by which two rows are the same evidence and who of them came first. Works on rows that were accepted, by
any gate and in any Datanet; knows nothing of storage, training or money.

**Features.** A row has two sets of words, its question's and its answer's; identifiers are taken apart (`read_csv`,
`DataFrame`). A word w has the weight  round(1000 ln((N + 1) / n_w)), n_w of N reference rows holding it: what stands
in every row tells nothing apart. With w(S) the weight of a set,

    J(S, T) = w(S and T) / w(S or T)          weighted Jaccard similarity
    C(S, T) = w(S and T) / w(S)               how much of S stands in T (Broder, 1997)

**Same evidence.** Rows that differ in case, width and white space alone are. Others, an earlier row e and a later one
l with q question, a answer, r both together, are where one of these holds:

    edited      J(r) >= row  and  J(a) >= floor       the question kept, the answer edited
    restated    J(a) >= answer                        the answer kept or shuffled, the question put in other words
    padded      sqrt(C(q_e, q_l) C(a_e, a_l)) >= contained  and  J(r), J(a) >= floor       the row within a longer one

The floors keep an earlier row from taking in later ones by its question alone: who asks everything first and answers
in two words owns nothing. Two rows of one contributor are the same only at J(q)^2 J(a) >= own^3: his honest rows share
his turns of phrase, and a copier who hides behind a second name meets the rules above. The thresholds are measured in
`benchmarks/clusters.py`; all arithmetic is in integers, so everyone finds the same clusters.

**Stars.** In the order of contribution, a row joins the earliest representative that it is the same evidence as; a row
that finds none represents a cluster of its own. Rows that joined attract no others, so a chain of small edits from one
row to an unrelated one doesn't tie the two together. The result depends on the rows alone, not on the order in which
they were fed.

**Credit.** Train on representatives alone: then a copy changes neither the adapter nor anybody's influence, and a row
counts once, however often its contributor sends it. `credited` is for scores measured where copies had been trained
on. See docs/concepts/evidence_clusters.md for why no such rule can be as good.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from openledger.core.errors import Conflict, InvalidInput
from openledger.datanets.dedupe import normalized, words

CLUSTER_RULE = "clusters/1"
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_UNSEEN = ("Cf", "Mn")  # characters without a width of their own, and accents
Score = TypeVar("Score", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRow:
    """`order` is the row's place in the order of contribution over all Datanets (the log's index, or the receipt's
    time): never what the contributor claims. Equal places go by row id."""

    row_id: str
    contributor_id: str
    order: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRule:
    """Thresholds in parts per thousand; see the module for what each is compared with."""

    row_milli: int = 480
    answer_milli: int = 700
    contained_milli: int = 830
    floor_milli: int = 200
    own_milli: int = 860

    def __post_init__(self) -> None:
        for name in ("row_milli", "answer_milli", "contained_milli", "floor_milli", "own_milli"):
            if not 0 < getattr(self, name) <= 1000:
                raise InvalidInput(f"{name} must be 1 to 1000", code="invalid_cluster_rule", param=name)
        if self.floor_milli > min(self.row_milli, self.answer_milli) or self.own_milli < self.answer_milli:
            raise InvalidInput(
                "the floor lies above a threshold, or a contributor's own rows are held to less than others'",
                code="invalid_cluster_rule",
                param="floor_milli",
            )


class WordWeights:
    """How much each word tells rows apart, counted once over reference rows. A word that none of them has weighs most.

    Keep one table for as long as clusters are compared: counted anew after every contribution, it would let whoever
    floods a word change which of the others' rows are the same.
    """

    def __init__(self, num_rows: int, counts: Mapping[str, int]):
        self.num_rows = num_rows
        self.counts = dict(counts)
        self._weights = {word: _weight(num_rows, count) for word, count in counts.items()}
        self._unknown = _weight(num_rows, 1)

    @classmethod
    def of(cls, rows: Iterable[ClusterRow]) -> "WordWeights":
        counts: Counter[str] = Counter()
        num_rows = 0
        for row in rows:
            counts.update(row_words(row.prompt) | row_words(row.completion))
            num_rows += 1
        return cls(num_rows, counts)

    def of_word(self, word: str) -> int:
        return self._weights.get(word, self._unknown)

    def total(self, some: Iterable[str]) -> int:
        return sum(self._weights.get(word, self._unknown) for word in some)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evidence:
    row_id: str
    contributor_id: str
    order: int
    text: tuple[str, str]
    question: frozenset[str]
    answer: frozenset[str]
    both: frozenset[str]
    question_weight: int
    answer_weight: int
    both_weight: int

    @property
    def place(self) -> tuple[int, str]:
        return self.order, self.row_id


class EvidenceClusters:
    """Rows fed in any order, Datanet by Datanet; the clusters are those of all rows fed so far.

    Finding similar rows is exact: two rows of which neither holds a word of the other's heaviest words can't reach a
    threshold (prefix filtering; Chaudhuri, Ganti and Kaushik, 2006), so only rows that share such a word are compared.
    """

    def __init__(self, weights: WordWeights, rule: ClusterRule | None = None):
        self.rule = rule or ClusterRule()
        self._weights = weights
        self._rows: dict[str, _Evidence] = {}
        self._similar: defaultdict[str, set[str]] = defaultdict(set)
        self._by_text: defaultdict[tuple[str, str], list[_Evidence]] = defaultdict(list)
        self._by_answer: defaultdict[str, list[_Evidence]] = defaultdict(list)
        self._by_both: defaultdict[str, list[_Evidence]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[ClusterRow]) -> None:
        """A row that is there already changes nothing. Raises Conflict where its id stands for another row."""
        for row in rows:
            evidence = self._evidence(row)
            known = self._rows.get(row.row_id)
            if known is None:
                self._insert(evidence)
            elif known != evidence:
                raise Conflict(
                    f"the row {row.row_id!r} is known with other content, contributor or place",
                    code="cluster_row_differs",
                    param="row_id",
                )

    def similar(self, row: ClusterRow) -> list[str]:
        """Ids of the rows that are the same evidence as `row`, earliest first, whether or not `row` was added."""
        evidence = self._evidence(row)
        found = [other for other in self._candidates(evidence) if _same(other, evidence, self._weights, self.rule)]
        return [other.row_id for other in sorted(found, key=lambda other: other.place)]

    def representatives(self) -> dict[str, str]:
        """The representative's id for every row's id, in the order of contribution; a representative is its own."""
        chosen: dict[str, str] = {}
        for row in sorted(self._rows.values(), key=lambda row: row.place):
            earlier = [other for other in self._similar.get(row.row_id, ()) if chosen.get(other) == other]
            chosen[row.row_id] = min(earlier, key=lambda other: self._rows[other].place, default=row.row_id)
        return chosen

    def _insert(self, row: _Evidence) -> None:
        for other in self._candidates(row):
            if _same(other, row, self._weights, self.rule):
                self._similar[row.row_id].add(other.row_id)
                self._similar[other.row_id].add(row.row_id)
        self._rows[row.row_id] = row
        self._by_text[row.text].append(row)
        for word in self._heaviest(row.answer, row.answer_weight, self.rule.answer_milli):
            self._by_answer[word].append(row)
        for word in self._heaviest(row.both, row.both_weight, self.rule.floor_milli):
            self._by_both[word].append(row)

    def _candidates(self, row: _Evidence) -> list[_Evidence]:
        found = {other.row_id: other for other in self._by_text.get(row.text, ())}
        for word in self._heaviest(row.answer, row.answer_weight, self.rule.answer_milli):
            found.update((other.row_id, other) for other in self._by_answer.get(word, ()))
        for word in self._heaviest(row.both, row.both_weight, self.rule.floor_milli):
            found.update((other.row_id, other) for other in self._by_both.get(word, ()))
        found.pop(row.row_id, None)
        return list(found.values())

    def _heaviest(self, some: frozenset[str], total: int, milli: int) -> list[str]:
        """Heaviest words first, until those left out weigh less than the threshold's part of the set. Sets at
        J >= threshold share at least that part of either, and so at least one of these words of either."""
        ordered = sorted(some, key=lambda word: (-self._weights.of_word(word), word))
        left, count = total, 0
        while count < len(ordered) and 1000 * left >= milli * total:
            left -= self._weights.of_word(ordered[count])
            count += 1
        return ordered[:count]

    def _evidence(self, row: ClusterRow) -> _Evidence:
        question, answer = row_words(row.prompt), row_words(row.completion)
        both = question | answer
        return _Evidence(
            row_id=row.row_id,
            contributor_id=row.contributor_id,
            order=row.order,
            text=(normalized(row.prompt), normalized(row.completion)),
            question=question,
            answer=answer,
            both=both,
            question_weight=self._weights.total(question),
            answer_weight=self._weights.total(answer),
            both_weight=self._weights.total(both),
        )


def cluster_rows(
    rows: Iterable[ClusterRow], rule: ClusterRule | None = None, weights: WordWeights | None = None
) -> dict[str, str]:
    """The representative's id for every row's id. Without `weights`, words are counted over `rows` themselves.

    Raises Conflict where one id stands for two rows.
    """
    given = list(rows)
    clusters = EvidenceClusters(weights or WordWeights.of(given), rule)
    clusters.add(given)
    return clusters.representatives()


def credited(
    scores: Mapping[str, Score], representatives: Mapping[str, str], contributors: Mapping[str, str]
) -> dict[str, Score]:
    """Scores by row id to scores by contributor: every row's influence goes to its representative's contributor.

    So an original earns what copies took from it, and who copied is named with nothing. A contributor's own later rows
    of a cluster are left out: sent n times, a row counts once. Rows without a score count nothing.

    Raises InvalidInput (`unknown_row`) for a scored row that is in no cluster or has no contributor.
    """
    totals: dict[str, Score] = {}
    for row_id in sorted(scores):
        representative = representatives.get(row_id)
        if representative is None or row_id not in contributors or representative not in contributors:
            raise InvalidInput(f"the row {row_id!r} is in no cluster", code="unknown_row", param="scores")
        contributor, credit_to = contributors[row_id], contributors[representative]
        totals.setdefault(contributor, type(scores[row_id])(0))
        totals.setdefault(credit_to, type(scores[row_id])(0))
        if row_id == representative or contributor != credit_to:
            totals[credit_to] += scores[row_id]
    return totals


def row_words(text: str) -> frozenset[str]:
    """The distinct words of `text` as they are compared: no case, accents or invisible characters, identifiers taken
    apart. A text of signs alone is one word of its own; a text without anything has none."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if unicodedata.category(sign) not in _UNSEEN)
    found = frozenset(words(_CAMEL.sub(" ", plain).replace("_", " ")))
    whole = normalized(plain)
    return found or (frozenset({whole}) if whole else frozenset())


def _same(one: _Evidence, other: _Evidence, weights: WordWeights, rule: ClusterRule) -> bool:
    """Whether the later of the two is the same evidence as the earlier one."""
    if one.text == other.text:
        return True
    earlier, later = (one, other) if one.place <= other.place else (other, one)
    shared = weights.total(earlier.answer & later.answer)
    union = earlier.answer_weight + later.answer_weight - shared
    if union == 0 or 1000 * shared < rule.floor_milli * union:
        return False
    if earlier.contributor_id == later.contributor_id:
        return _same_own(earlier, later, shared, weights, rule)
    if 1000 * shared >= rule.answer_milli * union:
        return True
    shared_both = weights.total(earlier.both & later.both)
    both = earlier.both_weight + later.both_weight - shared_both
    if 1000 * shared_both >= rule.row_milli * both:
        return True
    return 1000 * shared_both >= rule.floor_milli * both and _contained(earlier, later, shared, weights, rule)


def _contained(earlier: _Evidence, later: _Evidence, shared: int, weights: WordWeights, rule: ClusterRule) -> bool:
    shared_question = weights.total(earlier.question & later.question)
    whole = earlier.question_weight * earlier.answer_weight
    return 10**6 * shared_question * shared >= rule.contained_milli**2 * whole > 0


def _same_own(earlier: _Evidence, later: _Evidence, shared: int, weights: WordWeights, rule: ClusterRule) -> bool:
    union = earlier.answer_weight + later.answer_weight - shared
    shared_question = weights.total(earlier.question & later.question)
    questions = earlier.question_weight + later.question_weight - shared_question
    if questions == 0:
        return 1000 * shared >= rule.own_milli * union
    return 10**9 * shared_question**2 * shared >= rule.own_milli**3 * questions**2 * union


def _weight(num_rows: int, count: int) -> int:
    """Thousandths of a nat, at least one: no two machines round another way, and no word weighs nothing."""
    return max(1, round(1000 * math.log((num_rows + 1) / min(max(count, 1), num_rows + 1))))
