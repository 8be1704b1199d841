"""Which rows repeat an earlier row, seen by what they would teach (`sketches`): such rows aren't paid.

    likeness/1   of their own contributor's rows                     likeness_1.py
    likeness/2   of anybody's, by the order of credit                likeness_2.py
    likeness/3   the same in another basis, and with another theta   likeness_3.py

Each rule that was published has a module of its own, with its constants: what a settlement of before names can be
computed again as it was. This module knows which of them there are, and keeps what they find. A further rule is a
further module, a further list in `Repeats`, and a format of the file that has it.

What has no order of credit, as runs of before or of rows that belong to no Datanet, is judged by likeness/1. All lists
are kept: which one a period goes by, its rule of shares says (`likeness_rule`), and nobody's word beside it. Lists of
before are completed (`build_repeats`): what they say stays.

The list is of the rows that were trained on and were there when it was made. A row that is withdrawn later stays in it
as long as the adapter does; of an adapter that wasn't trained on it, the earliest of the rows alike is paid.

Words find copies of text (`datanets.clusters`); this finds what has no words, or other ones.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from openledger.adapters.base_model import BaseModel, load_model
from openledger.attribution import likeness_1, likeness_2, likeness_3
from openledger.attribution.likeness_1 import repeats_of_own
from openledger.attribution.likeness_2 import LEAST_MILLI as LEAST_MILLI
from openledger.attribution.likeness_2 import MOST_MILLI as MOST_MILLI
from openledger.attribution.likest import Found
from openledger.attribution.sketches import fit_places, sketches_by
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import read_document, write_json_durably
from openledger.core.hashing import digest_json
from openledger.core.shares import RULE_3, RULE_4
from openledger.training.lora import attach_lora
from openledger.training.record import load_run, run_start
from openledger.training.task import LANGUAGE, Task, Trainable

OWN_RULE, RULE_2, RULE = likeness_1.RULE, likeness_2.RULE, likeness_3.RULE
UNMEASURED = "unmeasured"  # stated of an index that was built before there was a list
FORMAT_1 = "openledger.repeats/1"  # one list, by likeness/1
FORMAT_2 = "openledger.repeats/2"  # none by likeness/3
FORMAT = "openledger.repeats/3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """A row that repeats `earlier`, one of `contributor_id`'s; `likeness_milli` is their cosine in thousandths. The
    contributor is empty in lists of before, which have none but the row's own."""

    row_id: str
    earlier: str
    likeness_milli: int
    contributor_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """The repeats among one run's rows: `own` by likeness/1; `anybodys_2` by likeness/2 and `anybodys` by likeness/3,
    None where nobody knows the order of credit, of which `credit_root` is the root. Lists of before have none by the
    later rules."""

    own: tuple[Repeat, ...]
    anybodys_2: tuple[Repeat, ...] | None = None
    anybodys: tuple[Repeat, ...] | None = None
    credit_root: str = ""

    def listed(self, shares_rule: str = "") -> tuple[str, tuple[Repeat, ...]]:
        """The list that a rule of shares goes by (the newest rule where none is said), with the rule that it is by; or,
        where that one isn't known, the newest before it."""
        lists = (RULE, self.anybodys), (RULE_2, self.anybodys_2), (OWN_RULE, self.own)
        newest = [rule for rule, _ in lists].index(likeness_rule(shares_rule))
        return next((rule, rows) for rule, rows in lists[newest:] if rows is not None)


def likeness_rule(shares_rule: str = "") -> str:
    """The rule of likeness that a rule of shares goes by, where a run knows the order of credit."""
    return {RULE_3: OWN_RULE, RULE_4: RULE_2}.get(shares_rule, RULE)


def find_repeats(
    module: Any,
    examples: Sequence[Trainable],
    task: Task = LANGUAGE,
    *,
    credit: Mapping[str, int] | None = None,
    salt: str = "",
    credit_root: str = "",
) -> Repeats:
    """The repeats among `examples`; `module` stands where the run begins, `credit` is the place of each row of the run
    in the order of credit (`RunRecord.places`), also of rows that are gone, and `salt` the run's public constant
    (`RunRecord.order`). Raises as `ekfac.fit`, and InvalidInput (`unknown_credit`) for a row without a place, or an
    order without a salt.
    """
    ordered = sorted(examples, key=lambda example: example.row_id)
    places = None if credit is None else [_place(credit, example.row_id) for example in ordered]
    if credit is not None and not salt:
        raise InvalidInput(
            "rows are compared by the order of credit and the run's public constant together",
            code="unknown_credit",
            param="salt",
            fix="give both: find_repeats(..., credit=record.places, salt=record.order)",
        )
    clear = () if places is None else (likeness_3.fit_places(len(ordered)),)
    found_RK, *clear_RK = sketches_by(module, ordered, (fit_places(len(ordered)), *clear), task)
    return repeats_among(
        [example.row_id for example in ordered],
        [example.contributor_id for example in ordered],
        found_RK,
        places,
        *clear_RK,
        num_rows=len(credit or ()),
        salt=salt,
        credit_root=credit_root,
    )


def repeats_among(
    row_ids: Sequence[str],
    contributors: Sequence[str],
    sketches_RK: npt.NDArray[Any],
    places: Sequence[int] | None = None,
    clear_RK: npt.NDArray[Any] | None = None,
    *,
    num_rows: int = 0,
    salt: str = "",
    credit_root: str = "",
) -> Repeats:
    """As the module says, of sketches of length one (or zero, which are alike to nothing), in the order of row ids.
    `clear_RK` are those in the basis of likeness/3, where they differ; `num_rows` are the rows of the run, where some
    of them are gone."""
    clear_RK = sketches_RK if clear_RK is None else clear_RK
    num_rows = max(num_rows, len(row_ids))

    def named(found: Iterable[Found]) -> tuple[Repeat, ...]:
        return tuple(
            Repeat(
                row_id=row_ids[row],
                earlier=row_ids[earlier],
                likeness_milli=milli,
                contributor_id=contributors[earlier],
            )
            for row, earlier, milli in sorted(found)
        )

    return Repeats(
        own=named(repeats_of_own(contributors, sketches_RK)),
        anybodys_2=None if places is None else named(likeness_2.repeats_of_anybody(contributors, sketches_RK, places)),
        anybodys=None
        if places is None
        else named(likeness_3.repeats_of_anybody(contributors, clear_RK, places, num_rows=num_rows, salt=salt)),
        credit_root=credit_root,
    )


def _place(credit: Mapping[str, int], row_id: str) -> int:
    if row_id not in credit:
        raise InvalidInput(
            f"nobody knows the place of {row_id} in the order of credit",
            code="unknown_credit",
            param="credit",
            fix="give the places of all rows, as the run's record has them, or none",
        )
    return credit[row_id]


def build_repeats(
    base: BaseModel, adapter: Path, trained: Sequence[Trainable], folder: Path, *, device: str = "cpu"
) -> Repeats:
    """Those of a recorded adapter's rows, written to the folder of its index, or found there: lists by all rules, where
    the run knows the order of credit. `trained` are the run's rows that are left. Raises NotFound where the run has no
    record, and as `find_repeats`.

    Of lists of before, what they say stays, and the lists that they lack are added. In these stand too, as they do in
    the newest list of before, pairs of which a row is gone by now: nobody frees his copies by withdrawing the first.
    """
    known = load_repeats(folder)
    if known is not None and not lacks_repeats(folder, adapter):
        return known
    record = load_run(adapter)
    found = Repeats(own=(), anybodys_2=(), anybodys=(), credit_root=record.credit_root)
    if trained or known is None:
        start = run_start(adapter, record)
        module = attach_lora(load_model(base).to(device), record.recipe, record.initial, start).eval()
        found = find_repeats(module, trained, credit=record.places, salt=record.order, credit_root=record.credit_root)
    if known is not None:
        found = _completed(known, found, {*record.row_ids} - {example.row_id for example in trained})
    save_repeats(folder, found)
    return found


def lacks_repeats(folder: Path, adapter: Path, shares_rule: str = "") -> bool:
    """Whether an index has no list of repeated rows, or none by the rule of likeness that `shares_rule` goes by (the
    newest where none is said) though its adapter's run knows the order of credit."""
    known = load_repeats(folder)
    return known is None or (known.listed(shares_rule)[0] != likeness_rule(shares_rule) and knows_credit(adapter))


def knows_credit(adapter: Path) -> bool:
    """Whether the folder has a run's record, with the order of credit."""
    return (adapter / "run.json").exists() and load_run(adapter).places is not None


def _completed(known: Repeats, found: Repeats, gone: Collection[str]) -> Repeats:
    if known.anybodys_2 is None:
        found = replace(found, anybodys_2=with_pairs_of(found.anybodys_2 or (), known.own, gone))
    else:
        found = replace(found, anybodys_2=known.anybodys_2)
    return replace(
        found, own=known.own, anybodys=with_pairs_of(found.anybodys or (), known.anybodys_2 or known.own, gone)
    )


def with_pairs_of(found: Sequence[Repeat], kept: Iterable[Repeat], gone: Collection[str]) -> tuple[Repeat, ...]:
    """`found` among the rows that are left, and of the pairs in `kept` those that nobody can compare any more: whose
    row or whose earlier row is `gone`. Of a row that is found to repeat another the pair that is found counts."""
    own, lost = {repeat.row_id for repeat in found}, set(gone)
    unseen = {
        repeat.row_id: repeat for repeat in kept if {repeat.row_id, repeat.earlier} & lost and repeat.row_id not in own
    }
    return (*found, *(unseen[row_id] for row_id in sorted(unseen)))


def save_repeats(folder: Path, found: Repeats) -> None:
    lists = {
        rule: [list(astuple(repeat)) for repeat in rows]
        for rule, rows in ((OWN_RULE, found.own), (RULE_2, found.anybodys_2), (RULE, found.anybodys))
        if rows is not None
    }
    told = {"lists": lists, "credit_root": found.credit_root}
    write_json_durably(_path(folder), {"format": FORMAT, **told, "digest": digest_json(told)})


def load_repeats(folder: Path) -> Repeats | None:
    """What `build_repeats` wrote; None where it never did, as in indexes built before. Raises Corrupt
    (`corrupt_repeats`)."""
    if not _path(folder).exists():
        return None

    def refused(reason: str) -> Corrupt:
        return Corrupt(
            f"the list of repeated rows at {_path(folder)} can't be read: {reason}",
            code="corrupt_repeats",
            param=str(folder),
            fix="remove the file and build the index again: it is made from the adapter and its rows",
        )

    return read_document(_path(folder), (FORMAT, FORMAT_2, FORMAT_1), _parsed, refused)


def _parsed(values: dict[str, Any]) -> Repeats:
    told = {name: value for name, value in values.items() if name != "digest"}
    if told.keys() == {"rule", "rows"} and told["rule"] == OWN_RULE:  # as FORMAT_1 has it
        told = {"lists": {OWN_RULE: told["rows"]}}
        if digest_json(values["rows"]) != values["digest"]:
            raise ValueError("it was changed")
    elif told.keys() != {"lists", "credit_root"} or digest_json(told) != values["digest"]:
        raise ValueError("it was changed")
    lists = {rule: tuple(_repeat(*row) for row in rows) for rule, rows in told["lists"].items()}
    return Repeats(
        own=lists[OWN_RULE],
        anybodys_2=lists.get(RULE_2),
        anybodys=lists.get(RULE),
        credit_root=told.get("credit_root", ""),
    )


def _repeat(row_id: str, earlier: str, likeness_milli: int, contributor_id: str = "") -> Repeat:
    return Repeat(row_id=row_id, earlier=earlier, likeness_milli=likeness_milli, contributor_id=contributor_id)


def likeness_stated(rule: str, rows: Sequence[Repeat]) -> str:
    """What scores say of it: the rule, and how many rows it found."""
    return f"{rule} {len(rows)}"


def _path(folder: Path) -> Path:
    return folder / "repeats.json"
