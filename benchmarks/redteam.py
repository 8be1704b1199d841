"""What it pays to cheat: every attack as code, its return on investment with and without the defences.

    python -m benchmarks.redteam FOLDER                       everything; resumable, killed at any point
    python -m benchmarks.redteam FOLDER --attack "split, 4 names" --attack "noise words"
    python -m benchmarks.redteam FOLDER --world digits --first 100 --seeds 8     digits of the seeds 100 to 107
    python -m benchmarks.redteam FOLDER --world language --first 102 --seeds 1   one seed of language
    python -m benchmarks.redteam FOLDER --honest              no attack: what the defences take from honest contributors
    python -m benchmarks.redteam FOLDER --report              the tables of what has been measured so far
    python -m benchmarks.redteam FOLDER --list

The return on investment of an attack is what the attacker is paid, less the fees he paid, over what the mean honest
contributor of the same world is paid. A contribution's deposit (`contribution_deposit_nano`) is 0 by default, so none
is lost; no stake is asked for. Honest contributors and attackers bring the same number of rows, unless stated.

- Outsiders (copiers, noise) join eight honest contributors: ROI = sum over seeds of his pay / sum of the honest mean.
- Insiders are one of the eight, another one in each seed, and do something to their own rows. His own worth is taken
  out: ROI = the same ratio, divided by the ratio where he plays honestly (paired: same rows, same constants), which is
  1 in expectation. "Change" is his pay against his own honest pay.

Standard errors are jackknife estimates over seeds. "Undefended" is a payer without gate, clusters or selection that
divides each answer's fee by one run's index, all of it (redteam_pay): by absolute and by clipped row scores.
"Defended" is the house as it stands: gate, evidence clusters, selection by quotas, a bank of equal blocks of rows, the
rule of shares and its z, and 70 : 30. Writes FOLDER/redteam.json; prints the tables.
"""

import argparse
import copy
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks import digits_task, language_task
from benchmarks import redteam_attacks as attacks
from benchmarks.clusters import restated
from benchmarks.digits_task import Digit
from benchmarks.redteam_pay import (
    NAIVE,
    PARAMETERS,
    Array,
    Figure,
    Pay,
    Record,
    change,
    defended_payments,
    jackknife,
    mean_pay,
    naive_pay,
    others_change,
    ratio,
    roi,
    total_pay,
)
from benchmarks.redteam_world import (
    Constants,
    DigitsKit,
    LanguageKit,
    Observed,
    admitted,
    first_sold,
    full_weights,
    observe,
    selected,
    without_restated,
)
from openledger.adapters.base_model import find_base_model
from openledger.attribution.index import METHOD
from openledger.attribution.spans import build_span_index
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.shares import RULE
from openledger.core.values import UNATTRIBUTED
from openledger.datanets.clusters import ClusterRow, WordWeights, cluster_rows
from openledger.datanets.versions import row_root
from openledger.economy.parameters import Parameters
from openledger.training.recipe import generator, public_constant

CONTRIBUTORS, ROWS_EACH, MAX_ROWS, SOLD_EACH, HELD_OUT_EACH = 8, 8, 56, 2, 2
SHORTEST = 24  # of each module's forty rows: a quarter of the time
COALITIONS = {"language": 16, "digits": 32}
PRICED = {"language": (16, 32), "digits": (16, 32, 64)}
NAMES = tuple(f"c{number}" for number in range(CONTRIBUTORS))
INSIDER, RIVAL, OUTSIDER = NAMES[-1], NAMES[0], "x"
SHOPPED, SHADOWS = 8, 8
FEW_ROWS, MANY = 10, 40
COMPLAINTS = 0.5


class World:
    """One seed's honest world, and what attacked ones have in common with it."""

    def __init__(self, folder: Path, kit: Any, seed: int):
        self.folder, self.kit, self.seed = folder, kit, seed
        self.num_coalitions = COALITIONS[kit.name]
        self.constants = Constants(
            initial=digest_json(["redteam", kit.name, seed, "initial"]),
            order=digest_json(["redteam", kit.name, seed, "order"]),
        )
        self.rows: list[Any] = []
        self.sold: list[Any] = []
        self.held_out: list[Any] = []
        self.bought: list[Any] = []  # by the insider himself, where he does; measured in every world
        self._paid: dict[str, dict[str, Pay]] = {}

    def own(self, name: str = INSIDER) -> list[Any]:
        return [row for row in self.rows if _person(row) == name]

    def but(self, name: str = INSIDER) -> list[Any]:
        return [row for row in self.rows if _person(row) != name]

    def defended_rows(self, rows: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def observe(
        self, rows: Sequence[Any], num_coalitions: int, constants: Constants | None = None, num_bought: int = 0
    ) -> Observed:
        """`rows` in the order of contribution."""
        found = observe(
            self.kit,
            self.folder,
            _attackers_last(rows),
            self.sold,
            self.held_out,
            constants or self.constants,
            num_coalitions,
            {row.row_id: place for place, row in enumerate(rows)},
            self.bought,
        )
        return first_sold(found, len(self.sold) + num_bought)

    def payments(self, rows: Sequence[Any]) -> dict[str, Pay]:
        """Payer -> what everybody is paid, where `rows` were sent."""
        key = digest_json([repr(row) for row in rows])
        if key not in self._paid:
            undefended = self.observe(rows, 0)
            found = {kind: naive_pay(undefended, kind) for kind in NAIVE}
            self._paid[key] = found | self.defended(self.observe(self.defended_rows(rows), self.num_coalitions))
        return self._paid[key]

    def fees(self, observed: Observed) -> Array:
        """1 OPEN an answer; half of those who got a wrong one say so, and it counts nothing."""
        tells = generator(f"complaints-{self.seed}", "tells").random(observed.num_sold) < COMPLAINTS
        return np.where(observed.wrong_Q[: observed.num_sold] & tells, 0.0, 1.0)

    def defended(self, observed: Observed) -> dict[str, Pay]:
        return defended_payments(observed, self.fees(observed))

    def record(
        self,
        rows: Sequence[Any],
        attacker: str,
        *,
        rival: str = "",
        reference: Sequence[Any] = (),
    ) -> Record:
        """`rows` were sent, some by `attacker`, who is an insider if he is in the honest world too."""
        attacked, before = self.payments(rows), self.payments(self.rows)
        people = {_person(row) for row in self.rows}
        others, inside = sorted(people - {attacker}), attacker in people
        trained = self.defended_rows(rows)
        return Record(
            attacker={payer: total_pay(pay, attacker) for payer, pay in attacked.items()},
            honest={payer: mean_pay(pay, others) for payer, pay in attacked.items()},
            alone={payer: total_pay(pay, attacker) for payer, pay in before.items()} if inside else {},
            alone_honest={payer: mean_pay(pay, others) for payer, pay in before.items()} if inside else {},
            reference={p: total_pay(pay, attacker) for p, pay in self.payments(reference).items()} if reference else {},
            rival={payer: total_pay(pay, rival) for payer, pay in attacked.items()} if rival else {},
            rival_alone={payer: total_pay(pay, rival) for payer, pay in before.items()} if rival else {},
            sent=sum(_person(row) == attacker for row in rows),
            trained=sum(_person(row) == attacker for row in trained),
        )


class LanguageWorld(World):
    """Customers, and the evaluation set, ask in other words for what honest rows answer: each for two of every
    contributor's rows. Answers sold are the right ones."""

    def __init__(self, folder: Path, kit: LanguageKit, seed: int):
        super().__init__(folder, kit, seed)
        self.stricter = False
        rows_file, _ = language_task.make_rows(Path(kit.base.path), folder)
        self.everything = [json.loads(line) for line in rows_file.read_text().splitlines()]
        draw = generator(f"redteam-language-{seed}", "modules")
        insider = language_task.CONTRIBUTORS[5 * seed % len(language_task.CONTRIBUTORS)]
        others = [name for name in language_task.CONTRIBUTORS if name != insider]
        modules = [*(others[n] for n in draw.permutation(len(others))[: CONTRIBUTORS - 1].tolist()), insider]
        for name, module in zip(NAMES, modules, strict=True):
            found = [record for record in self.everything if record["contributor"] == module]
            found = sorted(found, key=lambda record: len(record["prompt"] + record["completion"]))[:SHORTEST]
            own = [_text_row(found[n], name, 0) for n in draw.permutation(len(found))[:ROWS_EACH].tolist()]
            asked = [replace(row, row_id=f"asked/{row.row_id}", prompt=restated(row.prompt)) for row in own]
            self.rows += own
            self.sold += asked[:SOLD_EACH]
            self.held_out += asked[SOLD_EACH : SOLD_EACH + HELD_OUT_EACH]
        self.rows = [replace(row, order=place) for place, row in enumerate(self.rows)]
        self.bought = self.own()
        self.vocabulary = [word for record in self.everything for word in record["completion"].split()]
        self.weights = WordWeights.of([_text_row(record, "", 0) for record in self.everything])

    def defended_rows(self, rows: Sequence[ClusterRow]) -> list[ClusterRow]:
        kept = admitted(rows, self.weights)[1]
        kept = without_restated(kept, self.weights) if self.stricter else kept
        return selected(kept, MAX_ROWS, f"redteam-{self.seed}")

    def stricter_own(self) -> "LanguageWorld":
        """The same world, whose clusters hold a contributor's own rows to more."""
        found = copy.copy(self)
        found.stricter, found._paid = True, {}
        return found


class DigitsWorld(World):
    """There are no clusters for pixels: the gate's part here is that the same file is not taken twice."""

    def __init__(self, folder: Path, kit: DigitsKit, seed: int):
        super().__init__(folder, kit, seed)
        rows, questions = digits_task.make_examples(CONTRIBUTORS + 6, f"redteam-{seed}", ())
        names = {f"c{number:02}": NAMES[number] for number in range(CONTRIBUTORS)}
        own = [replace(row, contributor_id=names[row.contributor_id]) for row in rows if row.contributor_id in names]
        self.rows = sorted(own, key=lambda row: row.contributor_id)
        self.pool = [row for row in rows if row.contributor_id not in names]
        self.sold, self.held_out = questions[:60], questions[60:]

    def of_few_rows(self) -> "DigitsWorld":
        """The same rows by three times as many contributors of ten rows; what three of them are paid is summed."""
        found = copy.copy(self)
        found.rows, found._paid = attacks.in_pieces(self.rows, FEW_ROWS), {}
        return found

    def of_many_rows(self) -> "DigitsWorld":
        """Another world, of forty contributors of thirty rows; the insider is the last of them."""
        found = copy.copy(self)
        rows, questions = digits_task.make_examples(MANY, f"redteam-big-{self.seed}", ())
        names = {f"c{number:02}": INSIDER if number == MANY - 1 else f"h{number:02}" for number in range(MANY)}
        own = [replace(row, contributor_id=names[row.contributor_id]) for row in rows]
        found.rows = sorted(own, key=lambda row: row.contributor_id, reverse=True)
        found.sold, found.held_out, found._paid = questions[:60], questions[60:], {}
        return found

    def defended_rows(self, rows: Sequence[Digit]) -> list[Digit]:
        return list({(row.pixels, row.label): row for row in reversed(rows)}.values())[::-1]


Attack = Callable[[Any], Record]
LANGUAGE: dict[str, Attack] = {}
DIGITS: dict[str, Attack] = {}


def on(table: dict[str, Attack], name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        table[name] = function
        return function

    return add


# text: copies


def _copy_attack(
    change: Callable[[LanguageWorld, Sequence[ClusterRow]], Sequence[ClusterRow]], names: int = 1
) -> Attack:
    def run(world: LanguageWorld) -> Record:
        sent: list[ClusterRow] = []
        for number in range(names):
            by = OUTSIDER if names == 1 else f"{OUTSIDER}.{number}"
            copies = attacks.copied(world.own(RIVAL), by, attacks.LAST + 1000 * number)
            sent += change(world, copies)
        return world.record([*world.rows, *sent], OUTSIDER, rival=RIVAL)

    return run


LANGUAGE["copy, verbatim"] = _copy_attack(lambda _, rows: rows)


def _edited_copy(percent: int) -> Attack:
    return _copy_attack(lambda world, rows: attacks.edited(rows, percent, world.vocabulary, world.seed))


for _percent in (5, 10, 20, 40):
    LANGUAGE[f"copy, {_percent} % edited"] = _edited_copy(_percent)
LANGUAGE["copy, paraphrased"] = _copy_attack(lambda _, rows: attacks.paraphrased(rows))
LANGUAGE["copy, verbatim under 3 names (griefing)"] = _copy_attack(lambda _, rows: rows, names=3)


@on(LANGUAGE, "early copy of what a rival will send")
def early(world: LanguageWorld) -> Record:
    """The attacker's copies stand before the originals. What is trained on are the rival's texts in another name, so
    the attacker is paid what the rival is in the honest world."""
    copies = attacks.copied(world.own(RIVAL), OUTSIDER, -attacks.LAST)
    rows = [*world.rows, *copies]
    kept = {row.row_id.removeprefix(f"{OUTSIDER}/"): row.contributor_id for row in admitted(rows, world.weights)[1]}
    part = float(np.mean([kept.get(row.row_id) == OUTSIDER for row in world.own(RIVAL)]))
    before, attacked = world.payments(world.rows), world.payments(rows)
    naive = {payer: total_pay(attacked[payer], OUTSIDER) for payer in NAIVE}
    others = [name for name in NAMES if name != RIVAL]
    shipped = {payer: part * total_pay(pay, RIVAL) for payer, pay in before.items() if payer not in NAIVE}
    return Record(
        attacker=naive | shipped,
        honest={p: mean_pay(attacked[p] if p in NAIVE else pay, others) for p, pay in before.items()},
        rival={
            p: total_pay(attacked[p], RIVAL) if p in NAIVE else (1 - part) * total_pay(pay, RIVAL)
            for p, pay in before.items()
        },
        rival_alone={payer: total_pay(pay, RIVAL) for payer, pay in before.items()},
        sent=len(copies),
        trained=round(part * len(copies)),
    )


@on(LANGUAGE, "early copy, order of sealed commitments")
def early_sealed(world: LanguageWorld) -> Record:
    """As above, where a contribution's place is that of the digest of its rows, logged before anyone could read them:
    whoever copies what he saw stands behind."""
    return LANGUAGE["copy, verbatim"](world)


@on(LANGUAGE, "squatting: a rival's questions first, answered with anything")
def squat(world: LanguageWorld) -> Record:
    copies = attacks.copied(world.own(RIVAL), OUTSIDER, -attacks.LAST)
    junk = attacks.edited(copies, 100, world.vocabulary, world.seed)
    return world.record([*world.rows, *junk], OUTSIDER, rival=RIVAL)


def _clone_attack(change: Callable[[LanguageWorld, Sequence[ClusterRow]], Sequence[ClusterRow]]) -> Attack:
    """All rows copied into a Datanet of the attacker's own, whose adapter is sold beside the original's. Customers
    divide in proportion to the two adapters' gains; the attacker gets all of the contributors' part of his own sales
    (an upper bound) and the owner's. Pay is per row: he sends eight times an honest contributor's rows."""

    def run(world: LanguageWorld) -> Record:
        sent = list(change(world, attacks.copied(world.rows, OUTSIDER)))
        chosen = cluster_rows([*world.rows, *sent], weights=world.weights)
        kept = [row for row in sent if chosen[row.row_id] == row.row_id]
        before = world.payments(world.rows)
        gain = _gain(world.observe(world.defended_rows(world.rows), world.num_coalitions))
        owner = Parameters().owner_ppm / Parameters().contributors_ppm
        defended = _sales(gain, _gain(world.observe(kept, 0)) if kept else 0.0)
        undefended = _sales(_gain(world.observe(world.rows, 0)), _gain(world.observe(sent, 0)))
        sales = {payer: undefended if payer in NAIVE else defended for payer in before}
        honest = {payer: (1 - sales[payer]) * mean_pay(pay, NAMES) for payer, pay in before.items()}
        per_row = ROWS_EACH / len(sent)
        return Record(
            attacker={payer: per_row * part * (1 + owner) for payer, part in sales.items()},
            honest=honest,
            rival=honest,
            rival_alone={payer: mean_pay(pay, NAMES) for payer, pay in before.items()},
            sent=len(sent),
            trained=len(kept),
        )

    return run


LANGUAGE["clone of a Datanet, verbatim"] = _clone_attack(lambda _, rows: rows)
LANGUAGE["clone of a Datanet, 20 % edited"] = _clone_attack(
    lambda world, rows: attacks.edited(rows, 20, world.vocabulary, world.seed)
)
LANGUAGE["clone of a Datanet, paraphrased"] = _clone_attack(lambda _, rows: attacks.paraphrased(rows))


# text: one's own rows


@on(LANGUAGE, "duplicate own rows 4 times")
def duplicate(world: LanguageWorld) -> Record:
    return world.record([*world.but(), *attacks.repeated(world.own(), 4)], INSIDER)


@on(LANGUAGE, "duplicate own rows 3 times, paraphrased and 20 % edited")
def duplicate_edited(world: LanguageWorld) -> Record:
    def changed(rows: Sequence[ClusterRow], number: int) -> Sequence[ClusterRow]:
        if number == 1:
            return attacks.paraphrased(rows)
        return attacks.edited(rows, 20, world.vocabulary, world.seed)

    return world.record([*world.but(), *attacks.repeated(world.own(), 3, changed)], INSIDER)


LANGUAGE["duplicate own rows 3 times, paraphrased and 20 % edited; stricter for own rows"] = lambda world: (
    duplicate_edited(world.stricter_own())
)


@on(LANGUAGE, "pad rows: a sentence that says nothing in each")
def lengthen(world: LanguageWorld) -> Record:
    return world.record([*world.but(), *attacks.lengthened(world.own())], INSIDER)


@on(LANGUAGE, "pad with as many filler rows")
def fill(world: LanguageWorld) -> Record:
    topics = sorted({word.lower() for word in world.vocabulary if word.isalpha() and len(word) > 4})
    return world.record([*world.rows, *attacks.fillers(INSIDER, ROWS_EACH, topics, world.seed)], INSIDER)


@on(LANGUAGE, "noise characters")
def noise_characters(world: LanguageWorld) -> Record:
    return world.record([*world.rows, *attacks.noise_characters(OUTSIDER, ROWS_EACH, world.seed)], OUTSIDER)


@on(LANGUAGE, "noise words")
def noise_words(world: LanguageWorld) -> Record:
    rows = attacks.noise_words(world.own(RIVAL), OUTSIDER, world.vocabulary, world.seed)
    return world.record([*world.rows, *rows], OUTSIDER)


@on(LANGUAGE, "phrase seeding for spans")
def seed_phrases(world: LanguageWorld) -> Record:
    """Undefended: paid by the bits of verbatim spans, each divided over the rows that hold it (`spans`)."""
    phrases = attacks.common_phrases(world.but(), 4, 9)
    rows = [*world.but(), *attacks.seeded(world.own(), phrases)]
    found = world.record(rows, INSIDER)
    spans, alone = _span_pay(world, rows), _span_pay(world, world.rows)
    others = NAMES[:-1]
    return replace(
        found,
        attacker=found.attacker | {"spans": spans.get(INSIDER, 0.0)},
        honest=found.honest | {"spans": mean_pay(spans, others)},
        alone=found.alone | {"spans": alone.get(INSIDER, 0.0)},
        alone_honest=found.alone_honest | {"spans": mean_pay(alone, others)},
    )


@on(LANGUAGE, "split, 2 names")
def split_2(world: World) -> Record:
    return world.record(attacks.split_names(world.rows, INSIDER, 2), INSIDER)


def _self_query(number: int, idle: int = 0) -> Attack:
    """The insider buys `number` answers that are his own rows word for word (what a model that has learnt them by
    heart says: the best case for him), at the price of the others' answers. `idle` of the period's answers owe nothing
    to anybody's rows: they fill the pool and move no influence."""

    def run(world: LanguageWorld) -> Record:
        part = Parameters().contributors_ppm / 1e6
        pool, fees = (len(world.sold) + idle) * part, np.ones(len(world.sold) + number)
        more = (pool + number * part) / pool
        undefended = world.observe(world.rows, 0, num_bought=number)
        defended = world.observe(world.defended_rows(world.rows), world.num_coalitions, num_bought=number)
        alone = world.observe(world.defended_rows(world.rows), world.num_coalitions)
        paid = {kind: naive_pay(undefended, kind) for kind in NAIVE} | defended_payments(defended, fees, idle)
        before = world.payments(world.rows) | defended_payments(alone, fees[number:], idle)
        if idle:  # what divides each answer by itself has nobody to give theirs to
            for kind in NAIVE:
                paid.pop(kind), before.pop(kind)
        others = NAMES[:-1]
        return Record(
            attacker={p: more * total_pay(pay, INSIDER) - number / pool for p, pay in paid.items()},
            honest={payer: more * mean_pay(pay, others) for payer, pay in paid.items()},
            alone={payer: total_pay(before[payer], INSIDER) for payer in paid},
            alone_honest={payer: mean_pay(before[payer], others) for payer in paid},
            sent=number,
        )

    return run


@on(LANGUAGE, "split, 7 names")
def split_7(world: World) -> Record:
    return world.record(attacks.split_names(world.rows, INSIDER, 7), INSIDER)


@on(LANGUAGE, "merge two contributors")
def merge(world: World) -> Record:
    """Two insiders under one name; their pay together before and after."""
    other = NAMES[-2]
    others = NAMES[:-2]
    before, after = world.payments(world.rows), world.payments(attacks.merged_names(world.rows, [INSIDER, other]))
    return Record(
        attacker={payer: total_pay(pay, INSIDER) / 2 for payer, pay in after.items()},
        honest={payer: mean_pay(pay, others) for payer, pay in after.items()},
        alone={payer: mean_pay(pay, [INSIDER, other]) for payer, pay in before.items()},
        alone_honest={payer: mean_pay(pay, others) for payer, pay in before.items()},
    )


@on(LANGUAGE, "noise words under 8 names")
def noise_sybils(world: LanguageWorld) -> Record:
    rows = attacks.noise_words(world.own(RIVAL), OUTSIDER, world.vocabulary, world.seed)
    return world.record([*world.rows, *attacks.sybils(rows, OUTSIDER, ROWS_EACH)], OUTSIDER)


LANGUAGE["self-querying, 3 answers beside 16 sold"] = _self_query(3)
LANGUAGE["self-querying, 8 answers beside 16 sold"] = _self_query(8)
LANGUAGE["self-querying, 3 answers beside 16 sold and 48 that owe nothing"] = _self_query(3, 48)
LANGUAGE["self-querying, 8 answers beside 16 sold and 48 that owe nothing"] = _self_query(8, 48)


# pixels


DIGITS["split, 2 names"] = split_2


@on(DIGITS, "split, 4 names")
def split_4(world: World) -> Record:
    return world.record(attacks.split_names(world.rows, INSIDER, 4), INSIDER)


@on(DIGITS, "split, 30 names: one row each")
def split_30(world: World) -> Record:
    return world.record(attacks.split_names(world.rows, INSIDER, digits_task.ROWS_EACH), INSIDER)


DIGITS["merge two contributors"] = merge


@on(DIGITS, "label flipping, half of the rows")
def flip_half(world: DigitsWorld) -> Record:
    return world.record([*world.but(), *attacks.flipped(world.own(), 2)], INSIDER)


@on(DIGITS, "label flipping, all rows")
def flip_all(world: DigitsWorld) -> Record:
    return world.record([*world.but(), *attacks.flipped(world.own())], INSIDER)


@on(DIGITS, "split good rows from bad (half are bad)")
def split_bad(world: DigitsWorld) -> Record:
    """Change is against the same rows under one name."""
    mixed = attacks.flipped(world.own(), 2)
    bad = [row.row_id for row, was in zip(mixed, world.own(), strict=True) if row.label != was.label]
    rows = [*world.but(), *attacks.by_worth(mixed, bad, INSIDER)]
    return world.record(rows, INSIDER, reference=[*world.but(), *mixed])


@on(DIGITS, "label flipping, half of the rows; each row under a name of its own")
def flip_split(world: DigitsWorld) -> Record:
    """Nobody has to know which rows are bad: names are clipped one by one. Change is against one name."""
    mixed = attacks.flipped(world.own(), 2)
    rows = [*world.but(), *attacks.split_names(mixed, INSIDER, digits_task.ROWS_EACH)]
    return world.record(rows, INSIDER, reference=[*world.but(), *mixed])


@on(DIGITS, "confident falsehoods: images of one digit told to be another")
def falsehood(world: DigitsWorld) -> Record:
    """There are fewer such images than honest rows: his pay is per row."""
    digit = world.seed % 10
    images = [row for row in world.pool if row.label == digit][: digits_task.ROWS_EACH]
    found = world.record([*world.but(), *attacks.falsehoods(images, INSIDER, (digit + 5) % 10)], INSIDER)
    per_row = digits_task.ROWS_EACH / len(images)
    return replace(found, attacker={payer: per_row * pay for payer, pay in found.attacker.items()})


@on(DIGITS, "noise images")
def noise_images(world: DigitsWorld) -> Record:
    rows = attacks.noise_images(OUTSIDER, digits_task.ROWS_EACH, world.seed)
    return world.record([*world.rows, *rows], OUTSIDER)


def _noise_sybils(names: int) -> Attack:
    def run(world: DigitsWorld) -> Record:
        rows = attacks.noise_images(OUTSIDER, digits_task.ROWS_EACH, world.seed)
        return world.record([*world.rows, *attacks.sybils(rows, OUTSIDER, names)], OUTSIDER)

    return run


DIGITS["noise images under 6 names"] = _noise_sybils(6)
DIGITS["noise images under 30 names"] = _noise_sybils(30)


@on(DIGITS, "noise images under 30 names beside own rows")
def noise_beside(world: DigitsWorld) -> Record:
    """Does the error that noise brings into the sum lower what is taken from his own rows?"""
    rows = attacks.noise_images(INSIDER, digits_task.ROWS_EACH, world.seed)
    return world.record([*world.rows, *attacks.sybils(rows, INSIDER, digits_task.ROWS_EACH)], INSIDER)


@on(DIGITS, "no attack: as many honest rows again")
def honest_rows(world: DigitsWorld) -> Record:
    """What twice the rows are worth: the measure of noise that is sent beside one's own."""
    more = [replace(row, row_id=f"more/{row.row_id}", contributor_id=INSIDER) for row in world.pool]
    return world.record([*world.rows, *more[: digits_task.ROWS_EACH]], INSIDER)


@on(DIGITS, "noise images as block-mates of a rival of 10 rows")
def block_mates(world: DigitsWorld) -> Record:
    """The rival has too few rows for a block of his own; the attacker sends as many under each of three names, and so
    lies in the rival's block."""
    small = copy.copy(world)
    small.rows, small._paid = [*world.but(RIVAL), *world.own(RIVAL)[:FEW_ROWS]], {}
    noise = attacks.noise_images(OUTSIDER, digits_task.ROWS_EACH, world.seed)
    rows = [*small.rows, *attacks.sybils(noise, OUTSIDER, digits_task.ROWS_EACH // FEW_ROWS)]
    found, others = small.record(rows, OUTSIDER, rival=RIVAL), NAMES[1:]
    return replace(found, honest={payer: mean_pay(pay, others) for payer, pay in small.payments(rows).items()})


@on(DIGITS, "copy that no cluster finds")
def hidden_copy(world: DigitsWorld) -> Record:
    rows = [replace(row, row_id=f"x/{row.row_id}", contributor_id=OUTSIDER) for row in world.own(RIVAL)]
    return world.record([*world.rows, *attacks.jittered(rows, 1)], OUTSIDER, rival=RIVAL)


@on(DIGITS, "early copy that no cluster finds: a rival's rows, with a little noise, before he sends them")
def early_hidden_copy(world: DigitsWorld) -> Record:
    """Griefing as much as theft: the rival's rows are those that repeat. Who seals his rows first turns it into a copy
    that comes later, the attack above."""
    rows = [replace(row, row_id=f"x/{row.row_id}", contributor_id=OUTSIDER) for row in world.own(RIVAL)]
    return world.record([*attacks.jittered(rows, 1), *world.rows], OUTSIDER, rival=RIVAL)


@on(DIGITS, "duplicate own rows 4 times, file for file")
def duplicate_files(world: DigitsWorld) -> Record:
    return world.record([*world.but(), *attacks.repeated(world.own(), 4)], INSIDER)


@on(DIGITS, "duplicate own rows 4 times, no cluster finds them")
def duplicate_hidden(world: DigitsWorld) -> Record:
    return world.record([*world.but(), *attacks.repeated(world.own(), 4, attacks.jittered)], INSIDER)


@on(DIGITS, "duplicate own rows 4 times, each time under another name, no cluster finds them")
def duplicate_names(world: DigitsWorld) -> Record:
    def renamed(rows: Sequence[Digit], number: int) -> list[Digit]:
        return [replace(row, contributor_id=f"{INSIDER}.{number}") for row in attacks.jittered(rows, number)]

    return world.record([*world.but(), *attacks.repeated(world.own(), 4, renamed)], INSIDER)


@on(DIGITS, "duplicate own rows 4 times, two of each row under each of two names, no cluster finds them")
def duplicate_two_names(world: DigitsWorld) -> Record:
    def renamed(rows: Sequence[Digit], number: int) -> list[Digit]:
        name = INSIDER if number < 2 else f"{INSIDER}.2"
        return [replace(row, contributor_id=name) for row in attacks.jittered(rows, number)]

    return world.record([*world.but(), *attacks.repeated(world.own(), 4, renamed)], INSIDER)


def _many_names(names: int, each: int, *, few: bool = False, many: bool = False, noise: int = 0) -> Attack:
    """Accounts of few repetitions each, which raise theta by `likeness/2`; where honest contributors have few rows too
    (`few`) they share their groups there. `many`: among more rows, where theta may be higher by `likeness/3`. `noise`:
    so many noise images under the same names, to look less alike and to raise the number of rows."""

    def run(world: DigitsWorld) -> Record:
        large = world.of_many_rows() if many else world
        among = large.of_few_rows() if few else large
        sent = attacks.many_repeated(large.own(), INSIDER, names, each)
        if noise:
            sent += attacks.sybils(attacks.noise_images(INSIDER, noise, world.seed), INSIDER, names)
        return among.record([*among.rows, *sent], INSIDER)

    return run


for _names, _each in ((8, 10), (16, 20)):
    DIGITS[f"repetitions of own rows under {_names} names of {_each} rows, no cluster finds them"] = _many_names(
        _names, _each
    )
for _names, _each in ((8, 10), (16, 20), (30, 3)):
    DIGITS[f"the same among 24 contributors of 10 rows: {_names} names of {_each}"] = _many_names(
        _names, _each, few=True
    )
DIGITS["the same among 24 contributors of 10 rows: 16 names of 10, and as many noise images"] = _many_names(
    16, 10, few=True, noise=160
)
DIGITS["the same among 24 contributors of 10 rows: 16 names of 10, and six times as many noise images"] = _many_names(
    16, 10, few=True, noise=960
)
DIGITS["the same among 24 contributors of 10 rows: 64 names of 20"] = _many_names(64, 20, few=True)
for _names, _each in ((8, 10), (16, 20)):
    DIGITS[f"the same among 40 contributors of 30 rows: {_names} names of {_each}"] = _many_names(
        _names, _each, many=True
    )
for _names, _each in ((16, 20), (40, 8)):
    DIGITS[f"the same among 120 contributors of 10 rows: {_names} names of {_each}"] = _many_names(
        _names, _each, few=True, many=True
    )


def _outlier(epsilon: float) -> Attack:
    def run(world: DigitsWorld) -> Record:
        module = world.kit.module(full_weights(world.kit, _attackers_last(world.rows), world.constants))
        return world.record([*world.but(), *attacks.outliers(world.own(), module, epsilon)], INSIDER)

    return run


def _shadow(epsilon: float) -> Attack:
    def run(world: DigitsWorld) -> Record:
        modules = []
        for number in range(SHADOWS):
            chosen = generator(f"shadow-{world.seed}-{number}", "rows").permutation(len(world.pool))[:150].tolist()
            constants = Constants(initial=f"shadow-{world.seed}-{number}", order=f"shadow-{number}")
            modules.append(world.kit.module(full_weights(world.kit, [world.pool[n] for n in chosen], constants)))
        rows = attacks.shadowed(world.own(), modules, world.pool[:120], epsilon)
        return world.record([*world.but(), *rows], INSIDER)

    return run


for _epsilon in (0.05, 0.2):
    DIGITS[f"outlier inflation, step {_epsilon}"] = _outlier(_epsilon)
for _epsilon in (0.03, 0.2):
    DIGITS[f"shadow attack, step {_epsilon}"] = _shadow(_epsilon)


def _shopped(bank: bool) -> Attack:
    """The insider owns the Datanet too and keeps the best for him of eight constants."""

    def run(world: DigitsWorld) -> Record:
        tried = []
        for number in range(SHOPPED):
            constants = _nonced(world, f"owner-{number}", "none") if number else world.constants
            naive = world.observe(world.rows, 0, constants)
            pays = {kind: naive_pay(naive, kind) for kind in NAIVE}
            if bank:
                pays |= world.defended(world.observe(world.rows, world.num_coalitions, constants))
            tried.append(pays)
        best = {payer: max((pays[payer] for pays in tried), key=lambda pay: pay[INSIDER]) for payer in tried[0]}
        return _shop_record(best, tried[0])

    return run


@on(DIGITS, "blocks shopped among 8, nobody else gives a nonce")
def shop_blocks(world: DigitsWorld) -> Record:
    """As above, but the initial weights are given: the owner chooses the order, the blocks and their coalitions."""
    tried = []
    for number in range(SHOPPED):
        tried.append(world.defended(world.observe(world.rows, world.num_coalitions, block_constants(world, number))))
    best = {payer: max((pays[payer] for pays in tried), key=lambda pay: pay[INSIDER]) for payer in tried[0]}
    return _shop_record(best, tried[0])


def block_constants(world: World, number: int) -> Constants:
    """The same initial weights with another order, and so other blocks; number 0 are the world's own."""
    order = _nonced(world, f"owner-{number}", "none").order if number else world.constants.order
    return Constants(initial=world.constants.initial, order=order)


DIGITS["seed shopping among 8, nobody else gives a nonce"] = _shopped(bank=True)


@on(DIGITS, "seed shopping among 8 against a witness's nonce")
def shop_committed(world: DigitsWorld) -> Record:
    """The owner commits to the nonce that would be best for him with the nonce he guesses of the witness."""
    tried = [world.observe(world.rows, 0, _nonced(world, f"owner-{n}", "guess")) for n in range(SHOPPED)]
    best = int(np.argmax([naive_pay(observed, "clipped")[INSIDER] for observed in tried]))
    constants = _nonced(world, f"owner-{best}", "witness")
    naive = world.observe(world.rows, 0, constants)
    pays = {kind: naive_pay(naive, kind) for kind in NAIVE}
    pays |= world.defended(world.observe(world.rows, world.num_coalitions, constants))
    return _shop_record(pays, world.payments(world.rows))


def _shop_record(pays: Mapping[str, Pay], before: Mapping[str, Pay]) -> Record:
    others = NAMES[:-1]
    return Record(
        attacker={payer: total_pay(pay, INSIDER) for payer, pay in pays.items()},
        honest={payer: mean_pay(pay, others) for payer, pay in pays.items()},
        alone={payer: total_pay(before[payer], INSIDER) for payer in pays},
        alone_honest={payer: mean_pay(before[payer], others) for payer in pays},
    )


def _nonced(world: World, owner: str, witness: str) -> Constants:
    constant = public_constant(world.kit.identity, f"redteam-{world.seed}", 1, [owner, f"{witness}-{world.seed}"])
    return Constants(initial=constant, order=constant)


# what honest contributors pay


def honest_price(worlds: Sequence[World]) -> dict[str, dict[str, Figure]]:
    """What the defences take from worlds in which nobody attacks."""
    found: dict[str, dict[str, Figure]] = {}
    for coalitions in PRICED[worlds[0].kit.name]:
        paid: dict[str, list[float]] = {}
        for world in worlds:
            observed = world.observe(world.defended_rows(world.rows), coalitions)
            for payer, pay in world.defended(observed).items():
                paid.setdefault(payer, []).append(1 - pay[UNATTRIBUTED])
        figures = {payer: jackknife(values, lambda some: float(np.mean(some))) for payer, values in paid.items()}
        found[f"{worlds[0].kit.name}, {coalitions} coalitions"] = figures
    return found


def honest_rows_lost(worlds: Sequence[LanguageWorld]) -> dict[str, int]:
    sent = accepted = kept = 0
    for world in worlds:
        passed, chosen = admitted(world.rows, world.weights)
        sent, accepted, kept = sent + len(world.rows), accepted + len(passed), kept + len(chosen)
    return {"sent": sent, "accepted by the gate": accepted, "representatives": kept}


# running and printing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attack", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--world", choices=("language", "digits"), help="only this world")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds (language 3, digits 8)")
    parser.add_argument("--first", type=int, default=100, metavar="SEED", help="the first seed (100)")
    parser.add_argument("--honest", action="store_true", help="no attack: what the defences take from honest ones")
    parser.add_argument("--report", action="store_true", help="only print what has been measured so far")
    parser.add_argument("--list", action="store_true", help="print the attacks' names and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join([*(f"language: {name}" for name in LANGUAGE), *(f"digits: {name}" for name in DIGITS)]))
        return 0
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if options.world in (None, "digits"):
        digits = [DigitsWorld(options.folder, DigitsKit(), seed) for seed in _seeds(options, 8)]
        results["digits"] = run(
            options.folder, digits, {} if options.honest else DIGITS, options.attack, options.report
        )
    if options.world in (None, "language"):
        kit = LanguageKit(find_base_model(str(language_task.make_base(options.folder / "base"))))
        language = [LanguageWorld(options.folder, kit, seed) for seed in _seeds(options, 3)]
        attacked = {} if options.honest else LANGUAGE
        results["language"] = run(options.folder, language, attacked, options.attack, options.report)
        results["language"]["honest rows"] = honest_rows_lost(language)
    results["hardware"] = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    write_json_durably(options.folder / "redteam.json", results)
    for name in ("language", "digits"):
        if name in results:
            print(table(name, results[name]))
    return 0


def _seeds(options: argparse.Namespace, default: int) -> range:
    return range(options.first, options.first + (options.seeds or default))


def run(
    folder: Path, worlds: Sequence[Any], chosen: Mapping[str, Attack], only: Sequence[str] | None, report: bool = False
) -> dict[str, Any]:
    """Every attack in every world, seed by seed; figures by attack."""
    kind = worlds[0].kit.name
    names = [name for name in chosen if not only or name in only]
    records: dict[str, list[Record]] = {name: [] for name in names}
    for world in worlds:
        for name in names:
            if report and not _record_file(folder, world, name).exists():
                continue
            started = time.process_time()
            records[name].append(_kept(folder, world, name, chosen[name]))
            spent = time.process_time() - started
            if not report:
                print(f"{kind}, seed {world.seed}: {name}, {spent:.0f} CPU-s", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"attacks": {name: figures_of(own) for name, own in records.items() if own}}
    if not only and not report:
        found["honest price"] = {
            of: {payer: asdict(figure) for payer, figure in parts.items()} for of, parts in honest_price(worlds).items()
        }
    return found


def figures_of(records: Sequence[Record]) -> dict[str, Any]:
    payers = list(records[0].attacker)
    found: dict[str, Any] = {"seeds": len(records)}
    found |= {"sent": sum(r.sent for r in records), "trained": sum(r.trained for r in records)}
    for name, measure in (
        ("roi", roi),
        ("change", change),
        ("rival", lambda records, payer: change(records, payer, rival=True)),
        ("others", others_change),
    ):
        values = {payer: measure(records, payer) for payer in payers}
        found[name] = {payer: asdict(value) for payer, value in values.items() if value is not None}
    return found


def _kept(folder: Path, world: World, name: str, attack: Attack) -> Record:
    path = _record_file(folder, world, name)
    if not path.exists():
        write_json_durably(path, asdict(attack(world)))
    return Record(**json.loads(path.read_text()))


def _record_file(folder: Path, world: World, name: str) -> Path:
    """With the index, the rule and the z that it is paid by: what others paid is no result of these."""
    told = (world.kit.name, name, str(world.seed), METHOD, RULE, f"z{PARAMETERS.z_milli}")
    file = "-".join("".join(letter if letter.isalnum() else "-" for letter in text) for text in told)
    return folder / "records" / f"{file}.json"


def table(title: str, results: Mapping[str, Any]) -> str:
    heads = [
        *("attack", "seeds", "rows sent / trained on", "undefended, absolute", "undefended, clipped"),
        *("shares/2", "shares/3", "shares/4", RULE, "change", "others", "rival, undefended", f"rival, {RULE}"),
    ]
    lines = [f"\n{title}\n", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, figures in results["attacks"].items():
        cells = [str(figures["seeds"]), f"{figures['sent']} / {figures['trained']}" if figures["sent"] else ""]
        cells += [
            _cell(figures["roi"].get(payer))
            for payer in ("absolute", "clipped", "shares/2", "shares/3", "shares/4", "shipped")
        ]
        cells += [_cell(figures[part].get("shipped"), percent=True) for part in ("change", "others")]
        cells += [_cell(figures["rival"].get(payer), percent=True) for payer in ("absolute", "shipped")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, parts in results.get("honest price", {}).items():
        lines.append(f"{name}: paid to contributors " + ", ".join(f"{p} {_cell(v)}" for p, v in parts.items()))
    if "honest rows" in results:
        lines.append(f"honest rows: {results['honest rows']}")
    return "\n".join(lines)


def _cell(figure: Mapping[str, float] | None, percent: bool = False) -> str:
    if figure is None:
        return ""
    scale, unit = (100, " %") if percent else (1, "")
    digits = 1 if percent else 2
    value, error = scale * figure["value"], scale * figure["error"]
    return f"{value:{'+' if percent else ''}.{digits}f}" + (f" ± {error:.{digits}f}" if error == error else "") + unit


def _span_pay(world: LanguageWorld, rows: Sequence[ClusterRow]) -> Pay:
    examples = world.kit.encode(rows)
    owner = {row.row_id: row.contributor_id for row in rows}
    pay: Pay = dict.fromkeys(NAMES, 0.0)
    with TemporaryDirectory(prefix="redteam-spans-") as folder:
        index = build_span_index(
            examples,
            Path(folder) / "spans",
            row_root=row_root([row.row_id for row in rows]),
            base_digest="",
            special_ids=(),
        )
        for answer in world.kit.encode(world.sold):
            for span in index.spans(answer.ids[answer.num_prompt :]):
                for row_id in span.row_ids:
                    pay[owner[row_id]] += span.bits / len(span.row_ids)
    total = sum(pay.values())
    return {name: value / total for name, value in pay.items()} if total else pay


def _gain(observed: Observed) -> float:
    return max(0.0, float(observed.gains_Q[: observed.num_sold].mean()))


def _sales(original: float, clone: float) -> float:
    return ratio(clone, clone + original)


def _person(row: Any) -> str:
    """Whose row it is, under whatever name he sent it."""
    return str(row.contributor_id).partition(".")[0]


def _attackers_last(rows: Sequence[Any]) -> list[Any]:
    """Others' rows keep their numbers, and so their place in the order of training, whatever the attackers send."""
    return sorted(rows, key=lambda row: re.split("[.#]", row.contributor_id)[0] in (INSIDER, OUTSIDER))


def _text_row(record: Mapping[str, str], name: str, order: int) -> ClusterRow:
    return ClusterRow(
        row_id=record["row_id"],
        contributor_id=name,
        order=order,
        prompt=record["prompt"].strip(),
        completion=record["completion"].strip(),
    )


if __name__ == "__main__":
    sys.exit(main())
