"""Which rows repeat an earlier row, seen by what they would teach (`sketches`): such rows aren't paid.

    likeness/1   of their own contributor's rows                     likeness_1.py
    likeness/2   of anybody's, by the order of credit                likeness_2.py
    likeness/3   the same in another basis, and with another theta   likeness_3.py

Each rule that was published has a module of its own, with its constants: what a settlement of before names can be
computed again as it was. This module knows which of them there are, and keeps what they find. A further rule is a
further module, a further list in `Repeats`, and a format of the file that has it.

What has no order of credit, as runs of before or of rows that belong to no Datanet, is judged by likeness/1. All lists
are kept: which one a period goes by, its rule of shares says.

The list is of the rows that were trained on and were there when it was made. A row that is withdrawn later stays in it
as long as the adapter does; of an adapter that wasn't trained on it, the earliest of the rows alike is paid.

Words find copies of text (`datanets.clusters`); this finds what has no words, or other ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from openledger.adapters.base_model import BaseModel, load_model
from openledger.attribution import likeness_1, likeness_2, likeness_3
from openledger.attribution.likeness_1 import repeats_of_own
from openledger.attribution.likeness_2 import LEAST_MILLI as LEAST_MILLI
from openledger.attribution.likeness_2 import MOST_MILLI as MOST_MILLI
from openledger.attribution.likest import Found
from openledger.attribution.sketches import FIT_ROWS, sketches_by
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
        newest = {RULE_3: 2, RULE_4: 1}.get(shares_rule, 0)
        return next((rule, rows) for rule, rows in self._lists[newest:] if rows is not None)

    def stated(self, likeness: str) -> tuple[Repeat, ...]:
        """The list by the rule that a settlement's quality states as its `likeness`: by it a second scorer goes,
        whatever newer ones he knows. Raises InvalidInput (`unknown_rule`) where there is none by that rule."""
        rule = likeness.partition(" ")[0]
        known = {rule: rows for rule, rows in self._lists if rows is not None} | {UNMEASURED: ()}
        if rule not in known:
            raise InvalidInput(
                f"there is no list of repeated rows by {rule!r}, only by {', '.join(known)}",
                code="unknown_rule",
                param="likeness",
                fix="find the repeats again with the run's order of credit: find_repeats(..., credit=record.places)",
            )
        return known[rule]

    @property
    def _lists(self) -> tuple[tuple[str, tuple[Repeat, ...] | None], ...]:
        """The newest rule first."""
        return (RULE, self.anybodys), (RULE_2, self.anybodys_2), (OWN_RULE, self.own)


def find_repeats(
    module: Any,
    examples: Sequence[Trainable],
    task: Task = LANGUAGE,
    *,
    credit: Mapping[str, int] | None = None,
    credit_root: str = "",
) -> Repeats:
    """The repeats among `examples`; `module` stands where the run begins, `credit` is each row's place in the order of
    credit (`RunRecord.places`). Raises as `ekfac.fit`, and InvalidInput (`unknown_credit`) for a row without a place.
    """
    ordered = sorted(examples, key=lambda example: example.row_id)
    places = None if credit is None else [_place(credit, example.row_id) for example in ordered]
    fit_rows = (FIT_ROWS,) if places is None else (FIT_ROWS, likeness_3.FIT_ROWS)
    found_RK, *clear_RK = sketches_by(module, ordered, fit_rows, task)
    return repeats_among(
        [example.row_id for example in ordered],
        [example.contributor_id for example in ordered],
        found_RK,
        places,
        *clear_RK,
        credit_root=credit_root,
    )


def repeats_among(
    row_ids: Sequence[str],
    contributors: Sequence[str],
    sketches_RK: npt.NDArray[Any],
    places: Sequence[int] | None = None,
    clear_RK: npt.NDArray[Any] | None = None,
    *,
    credit_root: str = "",
) -> Repeats:
    """As the module says, of sketches of length one (or zero, which are alike to nothing), in the order of row ids.
    `clear_RK` are those in the basis of likeness/3, where they differ."""
    clear_RK = sketches_RK if clear_RK is None else clear_RK

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
        anybodys=None if places is None else named(likeness_3.repeats_of_anybody(contributors, clear_RK, places)),
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


def build_repeats(base: BaseModel, adapter: Path, trained: Sequence[Trainable], folder: Path) -> Repeats:
    """Those of a recorded adapter's rows, written to the folder of its index, or found there. Raises NotFound where the
    run has no record, and as `find_repeats`."""
    if (known := load_repeats(folder)) is not None:
        return known
    record = load_run(adapter)
    module = attach_lora(load_model(base), record.recipe, record.initial, run_start(adapter, record)).eval()
    found = find_repeats(module, trained, credit=record.places, credit_root=record.credit_root)
    save_repeats(folder, found)
    return found


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
