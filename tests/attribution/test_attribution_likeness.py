"""Rows that repeat earlier ones, of their contributor's or anybody's: found by their gradients at the start."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base

from benchmarks.digits_task import TASK, Digit, make_module
from openledger.adapters.base_model import load_model
from openledger.attribution import ekfac, likeness_3, likest
from openledger.attribution import sketches as sketches_module
from openledger.attribution.ekfac import fit
from openledger.attribution.gradients import sampled_fisher_pass
from openledger.attribution.index import gradient_vectors
from openledger.attribution.likeness import (
    LEAST_MILLI,
    MOST_MILLI,
    OWN_RULE,
    RULE,
    RULE_2,
    Repeat,
    Repeats,
    build_repeats,
    find_repeats,
    knows_credit,
    lacks_repeats,
    likeness_stated,
    load_repeats,
    repeats_among,
    save_repeats,
)
from openledger.attribution.sketches import SKETCH, fit_places, sketches_by
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.hashing import digest_json
from openledger.core.shares import RULE as SHARES_5
from openledger.core.shares import RULE_3 as SHARES_3
from openledger.core.shares import RULE_4 as SHARES_4
from openledger.training.examples import Example
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.record import load_run, save_run, train_run


def vectors(*rows):
    found = np.array(rows, dtype=np.float64)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def random_vectors(number, size=400, seed=0):
    return vectors(*np.random.default_rng(seed).normal(size=(number, size)))


def found(names, sketches_RK):
    rows = [f"r{number:04}" for number in range(len(names))]
    return {repeat.row_id: repeat for repeat in repeats_among(rows, list(names), sketches_RK).own}


def found_of_anybody(names, sketches_RK, places=None, rule=RULE):
    """Row numbers to the earlier rows' that they repeat, and how alike they are."""
    rows = [str(number) for number in range(len(names))]
    found = repeats_among(rows, list(names), sketches_RK, places or list(range(len(names))))
    repeats = found.anybodys if rule == RULE else found.anybodys_2
    assert all(repeat.contributor_id == names[int(repeat.earlier)] for repeat in repeats)
    return {int(repeat.row_id): (int(repeat.earlier), repeat.likeness_milli) for repeat in repeats}


def published_rows(number):
    """Rows of a few kinds, whose cosines are exact: signs of 64 numbers."""
    random = np.random.default_rng(5)
    kinds = random.integers(0, 2, (12, 64)) * 2 - 1
    rows = kinds[random.integers(0, 12, number)]
    for row in rows:
        row[random.choice(64, random.integers(0, 9), replace=False)] *= -1
    weights = np.array([8, 8, 6, 6, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1]) / 50
    names = [f"c{place}" for place in random.choice(14, number, p=weights)]
    return names, (rows / 8).astype(np.float16), random.permutation(number).tolist()


@pytest.mark.parametrize(
    ("number", "own", "anybodys_2", "anybodys"),
    [
        (60, (7, 812, "626daa2e4cefcfb2"), (29, 812, "78e313b736f535ca"), (34, 781, "5651e3a6c2d0dce4")),
        (400, (22, 969, "50fafb367d7b65c2"), (76, 969, "aedafe6c750099eb"), (344, 781, "394404165371b0ed")),
        (1500, (203, 969, "bb2d32b55564e4fa"), (352, 969, "b150032eb94be325"), (863, 875, "62b217f19dde24e7")),
    ],
)
def test_the_published_rules_find_what_they_found_when_they_were_published(number, own, anybodys_2, anybodys):
    """By each rule: how many rows, the least likeness of them, and the digest of the list. Settlements of before are
    recomputed by these; whoever changes them makes another rule."""
    names, sketches_RK, places = published_rows(number)
    repeats = repeats_among([f"r{row:04}" for row in range(number)], names, sketches_RK, places, salt="published")
    for told, wanted in ((repeats.own, own), (repeats.anybodys_2, anybodys_2), (repeats.anybodys, anybodys)):
        rows = [[each.row_id, each.earlier, each.likeness_milli, each.contributor_id] for each in told]
        assert (len(rows), min(row[2] for row in rows), digest_json(rows)[:16]) == wanted


class TestRepeatsOfOnesOwn:
    def test_name_the_likest_earlier_row_and_how_alike_they_are(self):
        repeats = found("aaa", vectors([1, 0, 0], [0.9, (1 - 0.9**2) ** 0.5, 0], [1, 0.1, 0]))
        assert repeats["r0001"] == Repeat(row_id="r0001", earlier="r0000", likeness_milli=900, contributor_id="a")
        assert (repeats["r0002"].earlier, repeats["r0002"].likeness_milli) == ("r0000", 995)
        assert "r0000" not in repeats

    def test_are_of_one_contributor(self):
        assert found("ab", vectors([1, 0], [1, 0])) == {}

    def test_are_above_the_least_likeness(self):
        height = LEAST_MILLI / 1000
        at, above = (vectors([1, 0], [c, (1 - c * c) ** 0.5]) for c in (height - 0.002, height + 0.002))
        assert (len(found("aa", at)), len(found("aa", above))) == (0, 1)

    def test_a_row_without_a_gradient_repeats_nothing(self):
        assert found("aa", np.zeros((2, 4), np.float16)) == {}

    def test_are_the_same_whatever_the_blocks(self, monkeypatch):
        rows = random_vectors(50, 6)
        names = ["ab"[number % 2] for number in range(50)]
        whole = found(names, rows)
        monkeypatch.setattr(likest, "_BLOCK", 7)
        assert found(names, rows) == whole != {}

    def test_where_strangers_are_as_alike_only_those_that_are_more_so(self):
        """400 rows on a low sphere: chance makes most of them alike to an earlier one, strangers' no less than own."""
        rows = random_vectors(400, 6)
        rows[396] = rows[0]
        names = ["abcd"[number % 4] for number in range(400)]
        repeats = found(names, rows)
        assert repeats["r0396"].earlier == "r0000"
        assert len(repeats) <= 24  # a fiftieth of 400 is 8
        assert len(found("a" * 400, rows)) > 200  # without strangers the least alone decides

    def test_two_strangers_are_too_few_to_tell_what_chance_does(self):
        rows = random_vectors(400, 6)
        assert len(found(["abc"[number % 3] for number in range(400)], rows)) > 100
        assert len(found(["abcd"[number % 4] for number in range(400)], rows)) <= 24

    def test_where_all_are_alike_the_most_decides(self):
        """Else rows that repeat one text under many names would be paid, however alike."""
        one = np.random.default_rng(0).normal(size=400)
        rows = vectors(*[one + 0.01 * noise for noise in np.random.default_rng(1).normal(size=(40, 400))])
        assert {repeat.likeness_milli for repeat in found("abcdefgh" * 5, rows).values()} == {1000}
        near = vectors(*[one + 0.3 * noise for noise in np.random.default_rng(1).normal(size=(40, 400))])
        assert LEAST_MILLI < 1000 * float(near[0].astype(float) @ near[8].astype(float)) < MOST_MILLI
        assert len(found("a" * 40, near)) == 39
        assert len(found("abcdefgh" * 5, near)) <= 4


class TestRepeatsOfAnybody:
    def test_name_the_likest_earlier_row_of_anybodys_and_whose_it_is(self):
        rows = vectors([1, 0, 0], [0.9, (1 - 0.9**2) ** 0.5, 0], [1, 0.1, 0])
        assert found_of_anybody("aba", rows) == {1: (0, 900), 2: (0, 995)}

    def test_come_in_the_order_of_credit_whatever_the_rows_ids(self):
        rows = vectors([1, 0, 0], [0, 1, 0], [1, 0.05, 0])
        assert found_of_anybody("abc", rows, [0, 1, 2]).keys() == {2}
        assert found_of_anybody("abc", rows, [7, 1, 3]).keys() == {0}

    @pytest.mark.parametrize(("rule", "least"), [(RULE_2, LEAST_MILLI), (RULE, likeness_3.LEAST_MILLI)])
    def test_are_above_the_least_likeness(self, rule, least):
        height = least / 1000
        at, above = (vectors([1, 0], [c, (1 - c * c) ** 0.5]) for c in (height - 0.002, height + 0.002))
        assert [len(found_of_anybody("ab", some, rule=rule)) for some in (at, above)] == [0, 1]

    @pytest.mark.parametrize("rule", [RULE_2, RULE])
    @pytest.mark.parametrize("number", [50, 150])
    def test_are_the_same_whatever_the_blocks(self, monkeypatch, number, rule):
        rows, names = random_vectors(number, 6), ["abcd"[row % 4] for row in range(number)]
        places = np.random.default_rng(1).permutation(number).tolist()
        whole = found_of_anybody(names, rows, places, rule)
        monkeypatch.setattr(likest, "_BLOCK", 7)
        assert found_of_anybody(names, rows, places, rule) == whole != {}

    def test_where_strangers_are_as_alike_only_those_that_are_more_so(self):
        """All rows are one row's neighbours, so theta rises with their number and not with the contributor's own."""
        rows = random_vectors(400, 8)
        rows[399] = rows[0]
        names = ["abcd"[number % 4] for number in range(400)]
        repeats = found_of_anybody(names, rows, rule=RULE_2)
        assert repeats[399] == (0, 1000)
        assert len(repeats) <= 24  # a fiftieth of 400 is 8
        assert len(found_of_anybody(["a"] * 400, rows)) > 100  # without strangers the least alone decides
        assert found_of_anybody(names, rows) == found_of_anybody(["a"] * 400, rows)  # by likeness/3 of so few rows too

    @pytest.mark.parametrize(("rule", "unpaid"), [(RULE_2, 0.07), (RULE, 0.15)])
    @pytest.mark.parametrize("number", [2, 3, 8, 50, 200, 2000])
    def test_honest_rows_alike_by_chance_are_paid_whatever_the_number_of_contributors(self, number, rule, unpaid):
        """On a low sphere half of 2,000 rows or more have an earlier one above the least. What likeness/3 leaves unpaid
        there is the price of its bound."""
        rows, random = random_vectors(2000, 10), np.random.default_rng(1)
        assert len(found_of_anybody(["a"] * 2000, rows, rule=rule)) > 1000
        names = [f"h{whose}" for whose in random.integers(0, number, 2000)]
        assert len(found_of_anybody(names, rows, rule=rule)) < unpaid * 2000

    @pytest.mark.parametrize(("names", "size"), [(8, 1), (100, 1), (60, 10), (30, 20), (6, 100)])
    def test_names_that_are_alike_to_nobody_lower_nobodys_theta(self, names, size):
        """By likeness/1 they do: who has rows of his own pays for it."""
        random, added = np.random.default_rng(1), names * size
        rows = np.zeros((1800 + added, 410))
        rows[:1800, :10], rows[1800:, 10:] = random_vectors(1800, 10), random_vectors(added, 400, seed=2)
        honest = [f"h{whose}" for whose in random.integers(0, 8, 1800)]
        others = [f"s{number % names}" for number in range(added)]
        alone = len(found_of_anybody(honest, vectors(*rows[:1800])))
        assert len(found_of_anybody([*honest, *others], vectors(*rows))) <= alone + 0.01 * 1800
        if size == 1:
            assert len(found([*honest, *others], vectors(*rows))) > 4 * len(found(honest, vectors(*rows[:1800])))

    @pytest.mark.parametrize(("size", "copies"), [(400, 400), (800, 400)])
    def test_one_name_of_however_many_copies_raises_nobodys_theta(self, size, copies):
        """30 contributors of 10 rows in many directions, two of which say the same; one more name has copies of all."""
        own, more = random_vectors(300, 64), random_vectors(size, 64, seed=1)
        own[299] = own[0] + 0.3 * own[1]
        own[299] /= np.linalg.norm(own[299])
        more[: min(copies, 300)] = own[: min(copies, 300)]
        names = [f"h{number % 30}" for number in range(300)] + ["b"] * size
        assert found_of_anybody(names, np.concatenate([own, more]))[299][0] == 0

    def test_one_row_under_many_names_is_paid_once(self):
        one = np.random.default_rng(0).normal(size=400)
        rows = vectors(*[one + 0.01 * noise for noise in np.random.default_rng(1).normal(size=(40, 400))])
        assert found_of_anybody("abcdefgh" * 5, rows).keys() == set(range(1, 40))

    def test_without_the_earliest_row_alike_the_next_one_is_paid(self):
        """Whoever withdraws one of his names' rows moves the pay to another of them, and gains none."""
        one = np.random.default_rng(0).normal(size=400)
        rows = vectors(*[one + 0.01 * noise for noise in np.random.default_rng(1).normal(size=(4, 400))])
        assert found_of_anybody("abcd", rows).keys() == {1, 2, 3}
        assert found_of_anybody("bcd", rows[1:]).keys() == {1, 2}

    def test_are_not_known_without_an_order_of_credit(self):
        told = repeats_among(["r0", "r1"], ["a", "b"], vectors([1, 0], [1, 0]))
        assert told == Repeats(own=(), anybodys_2=None, anybodys=None)
        assert told.listed() == (OWN_RULE, ())

    def test_count_where_the_rule_of_shares_is_of_others_rows_too(self):
        told = repeats_among(
            ["r0", "r1", "r2"],
            ["a", "b", "b"],
            vectors([1, 0], [1, 0], [1, 0]),
            [0, 1, 2],
            vectors([1, 0], [0, 1], [0, 1]),
        )
        listed = {rule: told.listed(rule) for rule in ("", SHARES_5, SHARES_4, SHARES_3)}
        assert {
            shares: (rule, [(row.row_id, row.earlier) for row in rows]) for shares, (rule, rows) in listed.items()
        } == {
            "": (RULE, [("r2", "r1")]),
            SHARES_5: (RULE, [("r2", "r1")]),
            SHARES_4: (RULE_2, [("r1", "r0"), ("r2", "r0")]),
            SHARES_3: (OWN_RULE, [("r2", "r1")]),
        }

    def test_go_by_the_rule_before_where_the_list_is_of_before(self):
        some = (Repeat(row_id="b", earlier="a", likeness_milli=900, contributor_id="x"),)
        assert Repeats(own=(), anybodys_2=some).listed(SHARES_5) == (RULE_2, some)
        assert Repeats(own=some).listed(SHARES_4) == (OWN_RULE, some)

    def test_a_second_scorer_goes_by_the_settlements_rule_of_shares_whatever_it_says_of_likeness(self):
        """An operator who settles by another list than the one that was voted, and says so, is found all the same."""
        rows = [(Repeat(row_id=name, earlier="a", likeness_milli=900, contributor_id="x"),) for name in "bcd"]
        told = Repeats(own=rows[0], anybodys_2=rows[1], anybodys=rows[2])
        settlements = [
            {"rule": rule, "quality": {"likeness": "likeness/3 1"}} for rule in (SHARES_3, SHARES_4, SHARES_5)
        ]
        assert [told.listed(settlement["rule"])[1] for settlement in settlements] == rows
        assert Repeats(own=(), anybodys_2=(), anybodys=rows[2]).listed(SHARES_4) == (RULE_2, ())
        assert not hasattr(told, "stated")


class TestNamesOfOneAttacker:
    """100 rows that teach the same among 900 that don't, of 30 contributors."""

    def unpaid(self, *attackers, honest=900, copies=0, seed=0):
        """How many rows of each name repeat others; the last attacker has `copies` of the honest rows beside."""
        random = np.random.default_rng(seed)
        own, one = random.normal(size=(honest, 256)), random.normal(size=256)
        alike = one + 0.02 * random.normal(size=(len(attackers), 256))
        names = [f"h{number % 30}" for number in range(honest)] + list(attackers) + [attackers[-1]] * copies
        rows, order = vectors(*own, *alike, *own[:copies]), random.permutation(len(names))
        names = [names[place] for place in order]
        self.of_anybody = Counter(names[row] for row in found_of_anybody(names, rows[order]))
        return Counter(names[int(row[1:])] for row in found(names, rows[order]))

    def test_one_name(self):
        assert self.unpaid(*["a"] * 100) == {"a": 99}

    @pytest.mark.parametrize("parts", [(50, 50), (95, 5), (90, 10), (40, 30, 30)])
    def test_more_names_raise_nobodys_theta(self, parts):
        names = [name for name, number in zip("abc", parts, strict=False) for _ in range(number)]
        assert self.unpaid(*names) == {name: number - 1 for name, number in zip("abc", parts, strict=False)}

    @pytest.mark.parametrize("number", [2, 20, 100])
    def test_of_anybodys_rows_one_is_paid_under_however_many_names(self, number):
        self.unpaid(*[f"s{row % number}" for row in range(100)])
        assert self.of_anybody.total() == 99

    def test_as_many_names_as_honest_ones_that_have_a_row_each(self):
        names = [f"s{number}" for number in range(90)]
        assert self.unpaid(*["a"] * 60, *names) == {"a": 59}

    def test_one_name_with_as_many_rows_as_all_the_others_that_copies_some_of_each(self):
        """Pairs of rows would be outvoted by these, pairs of contributors aren't."""
        assert self.unpaid(*["a"] * 60, *["b"] * 400, copies=300) == {"a": 59, "b": 399}
        assert self.of_anybody.total() == 59 + 400 + 300  # of each copy and its original the later one


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two contributors of random text: c0's last row is the first with one token changed."""
    random = np.random.default_rng(3)

    def example(row_id, who, ids):
        return Example(row_id=row_id, contributor_id=who, ids=tuple(int(i) for i in ids), num_prompt=4)

    texts = random.integers(3, 90, size=(8, 24))
    rows = [example(f"r{n}", f"c{n % 2}", ids) for n, ids in enumerate(texts)]
    again = texts[0].copy()
    again[-1] = 3 + (again[-1] - 2) % 87
    rows.append(example("r8", "c0", again))
    return make_tiny_base(tmp_path_factory.mktemp("base")), rows


def test_a_row_again_with_a_token_changed_is_found_by_loras_first_gradients(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    assert all(not p.any() for name, p in module.named_parameters() if ".lora_B." in name)
    (repeat,) = find_repeats(module, rows).own
    assert (repeat.row_id, repeat.earlier, repeat.contributor_id) == ("r8", "r0", "c0")
    assert repeat.likeness_milli > LEAST_MILLI


def test_somebody_elses_row_with_a_token_changed_repeats_whichever_came_first(world):
    base, rows = world
    stolen = [*rows[:-1], replace(rows[-1], contributor_id="c1")]
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    credit = {row.row_id: place for place, row in enumerate(stolen)}
    (copy,) = find_repeats(module, stolen, credit=credit, salt="s").anybodys
    (original,) = find_repeats(module, stolen, credit={**credit, "r8": -1}, salt="s").anybodys
    assert (copy.row_id, copy.earlier, copy.contributor_id) == ("r8", "r0", "c0")
    assert (original.row_id, original.earlier, original.contributor_id) == ("r0", "r8", "c1")
    assert copy.likeness_milli == original.likeness_milli
    assert find_repeats(module, stolen).own == ()


def digits(number):
    random = np.random.default_rng(5)
    return [Digit(f"r{n:03}", f"c{n % 8}", tuple(random.random(64).tolist()), n % 10) for n in range(number)]


def test_each_rules_basis_is_fitted_once_on_the_rows_that_it_says(monkeypatch):
    """Counted are the rows that the pass over them sees."""
    fits = []

    def counted_fit(module, examples, **options):
        fits.append(0)
        return fit(module, examples, **options)

    def counted_pass(module, batch, *rest):
        fits[-1] += len(batch)
        return sampled_fisher_pass(module, batch, *rest)

    monkeypatch.setattr(sketches_module, "fit", counted_fit)
    monkeypatch.setattr(ekfac, "sampled_fisher_pass", counted_pass)
    for number in (300, 120, 60):
        some = digits(number)
        credit = {row.row_id: place for place, row in enumerate(some)}
        find_repeats(make_module("bases"), some, TASK, credit=credit, salt="s")
    assert fits == [60, 256, 60, 120, 60]
    find_repeats(make_module("bases"), digits(300), TASK)
    assert fits[5:] == [60]  # without an order of credit there is no list by likeness/3


def test_the_bound_is_of_all_rows_that_have_a_place_in_the_order_of_credit(monkeypatch):
    asked = []
    monkeypatch.setattr(likeness_3, "bound_milli", lambda number: asked.append(number) or 800)
    credit = {f"r{n:03}": n for n in range(900)}
    find_repeats(make_module("bases"), digits(60), TASK, credit=credit, salt="s")
    assert asked == [900]


def test_an_order_of_credit_without_the_runs_constant_is_refused(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    with pytest.raises(InvalidInput) as caught:
        find_repeats(module, rows, credit={row.row_id: place for place, row in enumerate(rows)})
    assert (caught.value.code, caught.value.param) == ("unknown_credit", "salt")
    assert "salt=record.order" in caught.value.fix


def test_a_row_without_a_place_in_the_order_of_credit_is_refused(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    with pytest.raises(InvalidInput) as caught:
        find_repeats(module, rows, credit={"r0": 0}, salt="s")
    assert (caught.value.code, caught.value.param) == ("unknown_credit", "credit")


def sketches(module, rows):
    """In the first rules' basis."""
    return sketches_by(module, rows, (fit_places(len(rows)),))[0]


def test_sketches_keep_cosines(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    rows = [*rows, replace(rows[0], row_id="r9")]
    found_RK = sketches(module, rows).astype(np.float64)
    assert found_RK.shape == (len(rows), SKETCH)
    assert np.linalg.norm(found_RK, axis=1) == pytest.approx(1, abs=1e-2)
    gradients = gradient_vectors(module, rows)
    cosines = gradients @ gradients.T / np.outer(*[np.linalg.norm(gradients, axis=1)] * 2)
    assert found_RK[0] @ found_RK[9] == pytest.approx(1, abs=1e-2)  # the same text
    assert np.corrcoef((found_RK @ found_RK.T).ravel(), cosines.ravel())[0, 1] > 0.8  # they differ by the curvature
    torch.manual_seed(1)
    assert np.array_equal(sketches(module, rows), sketches(module, rows))


def trained_names(module):
    return {name for name, own in module.named_parameters() if own.requires_grad}


def test_matrices_without_a_gradient_at_the_start_are_left_out_and_the_sketches_are_the_same(world, monkeypatch):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    everything = trained_names(module)
    with sketches_module._without_idle(module):
        assert trained_names(module) == {name for name in everything if ".lora_B." in name}
    found_RK = sketches(module, rows)
    assert trained_names(module) == everything
    monkeypatch.setattr(sketches_module, "_without_idle", lambda module: nullcontext())
    assert np.array_equal(sketches(module, rows), found_RK)


def test_of_a_run_that_went_on_from_an_adapter_no_matrix_is_left_out(world):
    module = attach_lora(load_model(world[0]), Recipe(rank=2), "constant").eval()
    for name, own in module.named_parameters():
        own.data += 0.01 if ".lora_B." in name else 0
    everything = trained_names(module)
    with sketches_module._without_idle(module):
        assert trained_names(module) == everything


def test_the_list_is_written_once_and_read_again(world, tmp_path):
    base, rows = world
    train_run(base, rows, Recipe(rank=2, num_epochs=1), tmp_path / "run")
    assert load_repeats(tmp_path / "index") is None
    written = build_repeats(base, tmp_path / "run", rows, tmp_path / "index")
    assert load_repeats(tmp_path / "index") == written
    assert [repeat.row_id for repeat in written.own] == ["r8"]
    assert written.anybodys is None
    assert build_repeats(base, tmp_path / "gone", rows, tmp_path / "index") == written
    with pytest.raises(NotFound):
        build_repeats(base, tmp_path / "gone", rows, tmp_path / "other")


def test_a_run_that_knows_the_order_of_credit_has_both_lists(world, tmp_path):
    base, rows = world
    record = train_run(base, rows, Recipe(rank=2, num_epochs=1), tmp_path / "run")
    places = tuple(range(len(rows), 0, -1))  # the last came first
    save_run(tmp_path / "run", replace(record, credit=places, credit_root="ab"))
    written = build_repeats(base, tmp_path / "run", rows, tmp_path / "index")
    assert load_repeats(tmp_path / "index") == written
    assert [(each.row_id, each.earlier) for each in written.own] == [("r8", "r0")]
    assert [(each.row_id, each.earlier) for each in written.anybodys] == [("r0", "r8")]
    assert written.credit_root == "ab"


def write_format_2(folder, own, anybodys_2):
    """As indexes of before have it."""
    lists = {"likeness/1": [list(astuple(each)) for each in own], "likeness/2": [list(astuple(e)) for e in anybodys_2]}
    told = {"lists": lists, "credit_root": "ab"}
    folder.mkdir(exist_ok=True)
    written = {"format": "openledger.repeats/2", **told, "digest": digest_json(told)}
    (folder / "repeats.json").write_text(json.dumps(written))


@pytest.fixture
def run_of_before(world, tmp_path):
    """A run that knows the order of credit, and an index whose list has none by likeness/3."""
    base, rows = world
    record = train_run(base, rows, Recipe(rank=2, num_epochs=1), tmp_path / "run")
    save_run(tmp_path / "run", replace(record, credit=tuple(range(len(rows))), credit_root="ab"))
    own = (Repeat(row_id="r5", earlier="r3", likeness_milli=810, contributor_id="c1"),)  # nobody finds it now
    gone = Repeat(row_id="r6", earlier="r1", likeness_milli=930, contributor_id="c1")
    stands = Repeat(row_id="r7", earlier="r2", likeness_milli=920, contributor_id="c0")
    write_format_2(tmp_path / "index", own, (gone, stands))
    return tmp_path, own, gone, stands


class TestListsOfBefore:
    def test_are_completed_and_what_they_say_stays(self, world, run_of_before):
        base, rows = world
        folder, own, gone, stands = run_of_before
        assert lacks_repeats(folder / "index", folder / "run")
        assert lacks_repeats(folder / "index", folder / "run", SHARES_5)
        assert not lacks_repeats(folder / "index", folder / "run", SHARES_4)
        completed = build_repeats(base, folder / "run", rows, folder / "index")
        assert (completed.own, completed.anybodys_2) == (own, (gone, stands))
        assert [(each.row_id, each.earlier) for each in completed.anybodys] == [("r8", "r0")]
        assert load_repeats(folder / "index") == completed
        assert not lacks_repeats(folder / "index", folder / "run")
        assert build_repeats(base, folder / "run", [], folder / "index") == completed

    def test_hand_on_pairs_of_which_a_row_is_gone(self, world, run_of_before):
        """Else who copied a row would be paid once its author withdraws it."""
        base, rows = world
        folder, _, gone, _ = run_of_before
        left = [row for row in rows if row.row_id != "r1"]
        completed = build_repeats(base, folder / "run", left, folder / "index")
        assert [each.row_id for each in completed.anybodys] == ["r8", "r6"]
        assert completed.anybodys[1] == gone

    def test_of_which_no_row_is_left_hand_on_all(self, world, run_of_before):
        folder, _, gone, stands = run_of_before
        completed = build_repeats(world[0], folder / "run", [], folder / "index")
        assert completed.anybodys == (gone, stands)

    def test_by_likeness_1_alone_are_completed_by_both_others(self, world, run_of_before):
        base, rows = world
        folder, _, _, _ = run_of_before
        own = [["r6", "r1", 930]]
        told = {"format": "openledger.repeats/1", "rule": "likeness/1", "rows": own, "digest": digest_json(own)}
        (folder / "index" / "repeats.json").write_text(json.dumps(told))
        assert lacks_repeats(folder / "index", folder / "run", SHARES_4)
        assert not lacks_repeats(folder / "index", folder / "run", SHARES_3)
        left = [row for row in rows if row.row_id != "r1"]
        completed = build_repeats(base, folder / "run", left, folder / "index")
        assert completed.own == (Repeat(row_id="r6", earlier="r1", likeness_milli=930),)
        assert [each.row_id for each in completed.anybodys_2] == ["r8", "r6"]
        assert [each.row_id for each in completed.anybodys] == ["r8", "r6"]

    def test_of_runs_that_know_no_order_of_credit_are_whole(self, run_of_before):
        folder = run_of_before[0]
        save_run(folder / "run", replace(load_run(folder / "run"), credit=(), credit_root=""))
        assert not knows_credit(folder / "run")
        assert not lacks_repeats(folder / "index", folder / "run")
        assert not lacks_repeats(folder / "index", folder / "gone")
        assert lacks_repeats(folder / "nowhere", folder / "run")


CHANGES = [{"lists": {OWN_RULE: []}}, {"credit_root": "cd"}, {"rule": OWN_RULE}, {"digest": "00"}]


@pytest.mark.parametrize("changed", CHANGES)
def test_a_list_that_was_changed_is_refused(tmp_path, changed):
    repeat = Repeat(row_id="b", earlier="a", likeness_milli=900, contributor_id="x")
    save_repeats(tmp_path, Repeats(own=(repeat,), anybodys_2=(repeat,), anybodys=(repeat,), credit_root="ab"))
    values = json.loads((tmp_path / "repeats.json").read_text())
    (tmp_path / "repeats.json").write_text(json.dumps({**values, **changed}))
    with pytest.raises(Corrupt) as caught:
        load_repeats(tmp_path)
    assert caught.value.code == "corrupt_repeats"


def test_lists_of_before_have_none_by_the_newest_rule(tmp_path):
    told = {"lists": {"likeness/1": [], "likeness/2": [["b", "a", 900, "x"]]}, "credit_root": "ab"}
    written = {"format": "openledger.repeats/2", **told, "digest": digest_json(told)}
    (tmp_path / "repeats.json").write_text(json.dumps(written))
    repeat = Repeat(row_id="b", earlier="a", likeness_milli=900, contributor_id="x")
    assert load_repeats(tmp_path) == Repeats(own=(), anybodys_2=(repeat,), credit_root="ab")


def test_a_list_of_before_names_no_contributor_and_no_rows_of_others(tmp_path):
    rows = [["b", "a", 900]]
    told = {"format": "openledger.repeats/1", "rule": "likeness/1", "rows": rows, "digest": digest_json(rows)}
    (tmp_path / "repeats.json").write_text(json.dumps(told))
    assert load_repeats(tmp_path) == Repeats(own=(Repeat(row_id="b", earlier="a", likeness_milli=900),))
    (tmp_path / "repeats.json").write_text(json.dumps({**told, "rows": []}))
    with pytest.raises(Corrupt) as caught:
        load_repeats(tmp_path)
    assert caught.value.code == "corrupt_repeats"


def test_scores_say_by_which_rule_rows_were_found_and_how_many():
    repeat = Repeat(row_id="b", earlier="a", likeness_milli=900)
    assert likeness_stated(RULE, [repeat, replace(repeat, row_id="c")]) == "likeness/3 2"
    assert likeness_stated(OWN_RULE, []) == "likeness/1 0"
