"""How well copies are found, at what price for honest rows: recall, false merges, and what copies earn.

    python -m benchmarks.clusters            three to five minutes on one core

Honest rows are documentation strings of installed packages; packages written by the same people, or known to copy each
other's code, count as one contributor (GROUPS). Rows with an answer that has been seen are left out. What then merges
across contributors counts as a false merge, though some of it are copies that nobody told us of: the rate is an upper
bound. Every measure gets its threshold on one half of the rows, so that one honest row in a thousand merges, and is
tried on the other half. The rule `clusters/1` is tried as shipped.

Attacks are on rows of the second half, sent later under another name. "+q" restates the question too: the template
in other words, module and arguments gone. Edits put random words of other answers in place of a row's own.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import rensa
from rich.console import Console
from rich.table import Table

from openledger.core.hashing import digest_json
from openledger.datanets.clusters import ClusterRow, EvidenceClusters, WordWeights, row_words
from openledger.datanets.dedupe import DuplicateIndex, features_of, normalized, words
from openledger.datanets.docstrings import package_rows

GROUPS = (
    ("transformers", "accelerate", "peft", "huggingface_hub", "tokenizers"), ("sympy", "mpmath"), ("click", "typer"),
    ("setuptools", "distlib", "packaging", "virtualenv", "platformdirs", "importlib"), ("fastapi", "starlette"),
    ("asyncio", "email", "http", "logging", "xml", "multiprocessing", "unittest"), ("requests", "urllib3"),
    ("aiohttp", "yarl", "multidict"), ("jsonschema", "referencing"), ("torch",), ("ray",), ("pandas",), ("numpy",),
    ("networkx",), ("openai",), ("pygments",), ("pydantic",), ("rich",), ("hypothesis",), ("jinja2",), ("httpx",),
    ("opencensus",), ("fsspec",), ("cryptography",), ("pyarrow",), ("attr",), ("yaml",), ("wrapt",),
)  # fmt: skip
ROWS_EACH, NUM_ATTACKED, FALSE_MERGES_PERCENT, SEED = 2_000, 500, 0.1, 20261123
_QUESTION = re.compile(r"What (?:does|is) the \w+ ([^?(]*)")
_SYNONYM_PAIRS = """
return give; returns gives; compute calculate; computes calculates; create make; creates makes; check verify;
checks verifies; convert transform; converts transforms; get fetch; gets fetches; remove delete; removes deletes;
find locate; list sequence; array vector; number amount; name label; object instance; function routine;
method routine; class type; value quantity; values quantities; given supplied; specified stated; whether if;
string text; dictionary mapping; dict mapping; file document; directory folder; path location; index position;
element item; elements items; input argument; output result; outputs results; base parent; new fresh; current present;
default standard; set assign; sets assigns; add append; adds appends; update refresh; updates refreshes;
build construct; builds constructs; load read; loads reads; save store; saves stores; write put; run execute;
runs executes; start begin; starts begins; stop halt; used employed; use employ; using with; all every; each every;
single one; first initial; last final; same identical; error failure; exception error; raise throw; raised thrown;
raises throws; call invoke; called invoked; calls invokes; apply perform; applies performs; evaluate assess;
generate produce; generates produces; represents denotes; representing denoting; contains holds; containing holding;
wrapper shell; helper aid; model network; data records; tensor array; matrix table; graph network; node vertex;
nodes vertices; edge link; edges links; set collection; size extent; length extent; type kind; format layout;
request query; response reply; server host; client caller; time moment; process task; thread worker;
configuration settings; config settings; parameters arguments; parameter argument; available present; valid proper;
based built; associated linked; corresponding matching; multiple several
"""
SYNONYMS = dict(pair.split() for pair in _SYNONYM_PAIRS.split(";") if len(pair.split()) == 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Similarity of an earlier row to a later one: `jaccard`, or `contained` (how much of the earlier one is left)."""

    name: str
    tokens: Callable[[ClusterRow], Iterable[str]]
    weighted: bool = False
    contained: bool = False


MEASURES = (
    Measure(name="word-3-gram Jaccard, answer", tokens=lambda row: _word_triples(row.completion)),
    Measure(name="char-5-gram Jaccard, answer", tokens=lambda row: _char_grams(row.completion)),
    Measure(name="char-5-gram Jaccard, row", tokens=lambda row: _char_grams(f"{row.prompt} {row.completion}")),
    Measure(name="word containment, answer", tokens=lambda row: _answer(row), weighted=True, contained=True),
    Measure(name="word containment, row", tokens=lambda row: _both(row), weighted=True, contained=True),
    Measure(name="weighted word Jaccard, answer", tokens=lambda row: _answer(row), weighted=True),
    Measure(name="word Jaccard, row", tokens=lambda row: _both(row)),
    Measure(name="weighted word Jaccard, row", tokens=lambda row: _both(row), weighted=True),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-rows", type=int, default=12_000)
    options = parser.parse_args()
    console = Console(width=200)
    rows = honest_rows(options.max_rows)
    half = len(rows) // 2
    console.print(f"{len(rows)} rows, {len({row.contributor_id for row in rows})} contributors, {_digest(rows)}")
    attacks = attacks_on(rows[half:], random.Random(SEED))
    console.print(compare_measures(rows[:half], rows[half:], attacks))
    console.print(measure_rule(rows, attacks))
    console.print(honest_price(rows, fresh_rows(rows)))
    console.print(measure_pay())


def fresh_rows(used: Sequence[ClusterRow]) -> list[ClusterRow]:
    """As many rows on which no threshold was chosen, mostly of the largest packages: they have no others left."""
    known = {normalized(row.completion) for row in used}
    fresh = [row for row in honest_rows(10**6, 2 * ROWS_EACH) if normalized(row.completion) not in known]
    return fresh[: len(used)]


def honest_rows(max_rows: int, rows_each: int = ROWS_EACH) -> list[ClusterRow]:
    """Rows of all installed packages of GROUPS in an order drawn by hash, each answer once."""
    found = [
        (digest_json([SEED, row.source]), group[0], row)
        for group in GROUPS
        for package in group
        if find_spec(package)
        for row in package_rows(package)
    ]
    rows: list[ClusterRow] = []
    seen: set[str] = set()
    left = Counter({group[0]: rows_each for group in GROUPS})
    for key, contributor, row in sorted(found, key=lambda item: item[0]):
        if left[contributor] and (answer := normalized(row.completion)) not in seen and len(rows) < max_rows:
            seen.add(answer)
            left[contributor] -= 1
            rows.append(
                ClusterRow(
                    row_id=f"{len(rows):06d}-{key[:8]}",
                    contributor_id=contributor,
                    order=len(rows),
                    prompt=row.prompt,
                    completion=row.completion,
                )
            )
    return rows


Attacks = dict[str, list[tuple[ClusterRow, ClusterRow]]]


def attacks_on(rows: Sequence[ClusterRow], draw: random.Random) -> Attacks:
    """(original, copy) pairs for every attack, on the same originals."""
    originals = draw.sample(rows, min(NUM_ATTACKED, len(rows)))
    vocabulary = [word for row in rows for word in row.completion.split()]
    answers = [row.completion for row in rows]
    kinds: dict[str, Callable[[str], str]] = {
        "verbatim": lambda text: text,
        "case, space": lambda text: "  ".join(text.upper().split()) + " ",
        **{f"{percent} %": editor(percent, vocabulary, draw) for percent in (5, 10, 20, 40)},
        "synonyms": with_synonyms,
    }
    both = {
        **kinds,
        "shuffled": lambda text: _shuffled(text, draw),
        "padded": lambda text: f"{text} {draw.choice(answers)}",
    }
    sets = {name: [(row, _copy(row, edit(row.completion))) for row in originals] for name, edit in kinds.items()}
    sets |= {
        f"{name} +q": [(row, _copy(row, edit(row.completion), restated(row.prompt))) for row in originals]
        for name, edit in both.items()
        if name != "case, space"
    }
    return sets


def restated(prompt: str) -> str:
    """The question in other words: "What does the method a.B.c(x) do?" becomes "Please explain B.c."."""
    found = _QUESTION.match(prompt)
    name = (found[1] if found else prompt).removesuffix(" do").strip()
    return f"Please explain {name.split('.', 1)[-1]}."


def compare_measures(first: Sequence[ClusterRow], second: Sequence[ClusterRow], attacks: Attacks) -> Table:
    """Recall on `second` at the threshold that merges one row in a thousand of `first`."""
    shown = ("verbatim", "case, space", "5 %", "10 %", "20 %", "40 %", "synonyms", "10 % +q", "20 % +q", "padded +q")
    table = Table(
        "measure", "threshold", "false merges", *shown, title="recall at 0.1 % false merges on the other half, %"
    )
    weights = WordWeights.of(first)
    for measure in MEASURES:
        calibrated = np.sort(_Postings(measure, first, weights).honest())
        threshold = calibrated[-max(1, round(len(first) * FALSE_MERGES_PERCENT / 100))]
        tested = _Postings(measure, second, weights)
        recalls = [
            np.mean([tested.similarity(row, copy) > threshold + 1e-9 for row, copy in attacks[name]]) for name in shown
        ]
        table.add_row(
            measure.name, f"{threshold:.3f}", f"{(tested.honest() > threshold + 1e-9).mean():.2%}",
            *(f"{recall:.1%}" for recall in recalls),
        )  # fmt: skip
    table.add_row("the same by MinHash of 128, char-5, row", *_minhash(first, second, attacks, shown))
    return table


def measure_rule(rows: Sequence[ClusterRow], attacks: Attacks) -> Table:
    """The shipped rule and the gate's, each over all rows: what a copy of another's and of one's own row meets."""
    clusters = EvidenceClusters(WordWeights.of(rows))
    clusters.add(rows)
    chosen = clusters.representatives()
    owners = {row.row_id: row.contributor_id for row in rows}
    gate = DuplicateIndex()
    for row, features in zip(rows, features_of((row.prompt, row.completion) for row in rows), strict=True):
        gate.add(row.row_id, features)
    table = Table(
        "attack", "merged", "credited to the original's author", "own row again", "rejected by the gate",
        title=f"clusters/1 as shipped, {len(rows)} rows, {NUM_ATTACKED} copies of each kind",
    )  # fmt: skip
    for name, pairs in attacks.items():
        merged = [_joined(clusters, chosen, copy) for _, copy in pairs]
        right = [
            found is not None and owners[found] == row.contributor_id
            for found, (row, _) in zip(merged, pairs, strict=True)
        ]
        own = [row.row_id in clusters.similar(replace(copy, contributor_id=row.contributor_id)) for row, copy in pairs]
        gated = [
            gate.find(features) is not None for features in features_of((c.prompt, c.completion) for _, c in pairs)
        ]
        shares = [np.mean(values) for values in ([found is not None for found in merged], right, own, gated)]
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    return table


def honest_price(rows: Sequence[ClusterRow], fresh: Sequence[ClusterRow]) -> Table:
    """Honest rows that lose their place: by the shipped rule, in corpora of several sizes, and to squatters, who were
    first with the same question and an answer of no worth."""
    table = Table("honest rows", "merged into another's", "merged into own", title="false merges of clusters/1")
    half = len(rows) // 2
    for name, chosen in (
        ("first 480", rows[:480]),
        ("first half", rows[:half]),
        ("second half", rows[half:]),
        ("all", rows),
        ("fresh", fresh),
    ):
        clusters = EvidenceClusters(WordWeights.of(chosen))
        clusters.add(chosen)
        owner = {row.row_id: row.contributor_id for row in chosen}
        joined = [(row, by) for row, by in clusters.representatives().items() if row != by]
        others = sum(owner[row] != owner[by] for row, by in joined)
        own = len(joined) - others
        table.add_row(f"{name}, {len(chosen):,}", f"{others / len(chosen):.2%}", f"{own / len(chosen):.2%}")
    draw = random.Random(SEED)
    weights, squatted = WordWeights.of(rows), draw.sample(rows, min(NUM_ATTACKED, len(rows)))
    answers = {"a random row's answer": None, "a phrase for all": "It does what its name says."}
    for name, answer in answers.items():
        hits = 0
        for row in squatted:
            first = EvidenceClusters(weights)
            first.add([_copy(row, answer or draw.choice(rows).completion, order=-1)])
            hits += bool(first.similar(row))
        table.add_row(f"squatted by {name}", f"{hits / len(squatted):.2%}", "")
    return table


def measure_pay() -> Table:
    """What copies of all rows of one contributor do to pay, where the truth is at hand.

    Ridge regression on the rows of 12 contributors; a row's influence is the exact effect of its leaving on the
    held-out squared error. Mean of 200 draws, in parts of the original's pay where nobody copies. A small penalty
    stands for a model that has learnt its rows, a large one for a model that is far from it.
    """
    table = Table(
        "penalty", "copies of each row", "no clusters: original", "no clusters: copier", "copies trained, all credited",
        "copies trained, counted once", "representatives alone trained",
        title="pay of the copied contributor, in parts of his pay without copies",
    )  # fmt: skip
    for penalty in (10, 50, 1000):
        alone = np.mean([_row_pay(0, penalty, seed) for seed in range(200)])
        for copies in (1, 3, 7):
            kept = float(np.mean([_row_pay(copies, penalty, seed) for seed in range(200)]) / alone)
            shown = (kept, copies * kept, (copies + 1) * kept, kept, 1.0)
            table.add_row(str(penalty), str(copies), *(f"{value:.2f}" for value in shown))
    return table


def _row_pay(copies: int, penalty: float, seed: int) -> float:
    """Summed influence of contributor 0's rows, each counted once, where each is trained on 1 + `copies` times."""
    draw = np.random.default_rng(seed)
    features, each, contributors = 24, 6, 12
    truth = draw.normal(size=features)
    x = draw.normal(size=(each * contributors, features))
    y = x @ truth + draw.normal(size=len(x))
    test = draw.normal(size=(400, features))
    wanted = test @ truth

    def error(weights: npt.NDArray[np.float64]) -> float:
        hessian = (x * weights[:, None]).T @ x + penalty * np.eye(features)
        return float(np.mean((test @ np.linalg.solve(hessian, x.T @ (weights * y)) - wanted) ** 2))

    weights = np.ones(len(x))
    weights[:each] += copies
    full = error(weights)
    return sum(error(weights - np.eye(1, len(x), row)[0]) - full for row in range(each))


class _Postings:
    """The rows that hold each token: what gives one row's similarity to all others at once."""

    def __init__(self, measure: Measure, rows: Sequence[ClusterRow], weights: WordWeights):
        self._measure, self._weights = measure, weights
        self._numbers: dict[str, int] = {}
        ids = [
            np.array(
                [self._numbers.setdefault(token, len(self._numbers)) for token in sorted(set(measure.tokens(row)))]
            )
            for row in rows
        ]
        self._ids = [each.astype(np.int64) for each in ids]
        self._token_weights = np.array([self._weight(token) for token in self._numbers], dtype=float)
        self._totals = np.array([self._token_weights[each].sum() for each in self._ids])
        joined = np.concatenate(self._ids)
        rows_of_tokens = np.repeat(np.arange(len(rows)), [len(each) for each in self._ids])
        self._holders = rows_of_tokens[np.argsort(joined, kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(joined, minlength=len(self._numbers)))])
        names = sorted({row.contributor_id for row in rows})
        self._owners = np.array([names.index(row.contributor_id) for row in rows])

    def honest(self) -> npt.NDArray[np.float64]:
        """Each row's largest similarity to an earlier row of another contributor."""
        largest = np.zeros(len(self._ids))
        for row, ids in enumerate(self._ids):
            holders = [self._holders[self._starts[token] : self._starts[token + 1]] for token in ids]
            if row and holders:
                weights = np.repeat(self._token_weights[ids], [len(each) for each in holders])
                shared = np.bincount(np.concatenate(holders), weights=weights, minlength=row)[:row]
                similar = self._similarity(shared, self._totals[:row], self._totals[row])
                largest[row] = similar[self._owners[:row] != self._owners[row]].max(initial=0.0)
        return largest

    def similarity(self, earlier: ClusterRow, later: ClusterRow) -> float:
        one, other = set(self._measure.tokens(earlier)), set(self._measure.tokens(later))
        shared, first, second = (sum(map(self._weight, some)) for some in (one & other, one, other))
        return float(self._similarity(np.array([shared], dtype=float), np.array([first], dtype=float), second)[0])

    def _similarity(
        self, shared: npt.NDArray[np.float64], earlier: npt.NDArray[np.float64], later: float
    ) -> npt.NDArray[np.float64]:
        return shared / np.maximum(1e-9, earlier if self._measure.contained else earlier + later - shared)

    def _weight(self, token: str) -> float:
        return self._weights.of_word(token) if self._measure.weighted else 1.0


def _minhash(
    first: Sequence[ClusterRow], second: Sequence[ClusterRow], attacks: Attacks, shown: Sequence[str]
) -> list[str]:
    """As `compare_measures`, for the estimate that a sketch of 128 permutations gives of the char-5-gram Jaccard."""

    def sketches(rows: Sequence[ClusterRow]) -> npt.NDArray[np.uint32]:
        grams = [sorted(set(_char_grams(f"{row.prompt} {row.completion}"))) for row in rows]
        return np.array([each.digest() for each in rensa.RMinHash.from_token_sets(grams, 128, 1)], dtype=np.uint32)

    def honest(rows: Sequence[ClusterRow]) -> npt.NDArray[np.float64]:
        made, owners = sketches(rows), np.array([row.contributor_id for row in rows])
        return np.array(
            [
                (made[:row] == made[row]).mean(axis=1)[owners[:row] != owners[row]].max(initial=0.0)
                for row in range(len(rows))
            ]
        )

    threshold = np.sort(honest(first))[-max(1, round(len(first) * FALSE_MERGES_PERCENT / 100))]
    recalls = [
        (sketches([row for row, _ in attacks[name]]) == sketches([copy for _, copy in attacks[name]])).mean(axis=1)
        > threshold + 1e-9
        for name in shown
    ]
    false_merges = (honest(second) > threshold + 1e-9).mean()
    return [f"{threshold:.3f}", f"{false_merges:.2%}", *(f"{recall.mean():.1%}" for recall in recalls)]


def _joined(clusters: EvidenceClusters, chosen: dict[str, str], copy: ClusterRow) -> str | None:
    """The representative that the copy joins."""
    return next((row_id for row_id in clusters.similar(copy) if chosen[row_id] == row_id), None)


def _copy(row: ClusterRow, completion: str, prompt: str | None = None, order: int = 10**9) -> ClusterRow:
    return ClusterRow(
        row_id="copy", contributor_id="copier", order=order, prompt=prompt or row.prompt, completion=completion
    )


def with_synonyms(text: str) -> str:
    return " ".join(SYNONYMS.get(word.lower(), word) for word in text.split())


def editor(percent: int, vocabulary: Sequence[str], draw: random.Random) -> Callable[[str], str]:
    def edit(text: str) -> str:
        told = text.split()
        for place in draw.sample(range(len(told)), max(1, round(percent * len(told) / 100))):
            told[place] = draw.choice(vocabulary)
        return " ".join(told)

    return edit


def _shuffled(text: str, draw: random.Random) -> str:
    told = text.split()
    draw.shuffle(told)
    return " ".join(told)


def _answer(row: ClusterRow) -> frozenset[str]:
    return row_words(row.completion)


def _both(row: ClusterRow) -> frozenset[str]:
    return row_words(row.prompt) | row_words(row.completion)


def _word_triples(text: str) -> list[str]:
    told = ["^", *words(text), "$"]
    return [" ".join(told[start : start + 3]) for start in range(max(1, len(told) - 2))]


def _char_grams(text: str) -> list[str]:
    plain = f" {normalized(text)} "
    return [plain[start : start + 5] for start in range(max(1, len(plain) - 4))]


def _digest(rows: Sequence[ClusterRow]) -> str:
    return f"digest {digest_json([[row.prompt, row.completion] for row in rows])[:12]}, seed {SEED}"


if __name__ == "__main__":
    main()
