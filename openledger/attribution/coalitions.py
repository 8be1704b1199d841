"""Which coalitions of rows a bank trains: random, balanced, and public.

The bank's players are **blocks** of equal numbers of rows. What a player is worth to half of the others depends on how
much the player is: if contributors played, two would be worth more together than apart, and names would pay. Blocks
are of one size, whoever sent the rows:

    N rows, B = max(8, min(coalitions / 2, N / 8)) blocks of floor(N / B) or one more rows

Each contributor's rows are dealt in the order of a hash of the row and the run's public constant. As many whole blocks
as his rows fill are his alone. What is left of everybody's is laid end to end, most rows first and then in the order of
a hash of the contributors, and cut: such a block holds a few rows each of some contributors, and the bank knows them
together. Those with as few rows lie together, so that whoever sends junk under many names is with his like.

A player is therefore a group of rows. In the banks of earlier versions players were contributors (`bank_groups`: in
groups where there are more than a bank can tell apart, the largest alone); those stay readable, and are what
benchmarks of exact values use.

Every coalition comes with its complement, so that each group is in exactly half of them. Three pairs of four are
halves; in every fourth pair one side has a quarter of the groups and the other the rest, because halves alone can't
tell what all groups add together from what is there without any.

Shapes: M members, G groups, R rows.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json
from openledger.training.recipe import generator

DEFAULT_COALITIONS = 32
FEWEST_BLOCKS, FEWEST_ROWS = 8, 8
_TRIES = 64

Membership = npt.NDArray[np.bool_]
Players = Literal["blocks", "contributors"]
Row = tuple[str, str]  # its id and its contributor's


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """`groups` of row ids, or of contributor ids where `players` are such; `members_MG` says which group's rows each
    member is trained on."""

    groups: tuple[tuple[str, ...], ...]
    members_MG: Membership
    players: Players = "blocks"

    def numbers(self, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
        """Each row's group, [R]. Raises InvalidInput (`wrong_bank`) where a row is in none."""
        number_of = {name: number for number, group in enumerate(self.groups) for name in group}
        keys = [row_id if self.players == "blocks" else contributor for row_id, contributor in rows]
        missing = sorted(set(keys) - set(number_of))
        if missing:
            raise InvalidInput(
                f"the bank doesn't know {missing[0]!r}: it is another run's", code="wrong_bank", param="bank"
            )
        return np.array([number_of[key] for key in keys], dtype=np.int64)

    def parts(self, rows: Sequence[Row], names: Sequence[str]) -> npt.NDArray[np.float64]:
        """[len(names), G]: which part of each group's rows is each contributor's. `rows` are all of the run's."""
        places = {name: place for place, name in enumerate(names)}
        counts = np.zeros((len(names), len(self.groups)))
        for (_, contributor), group in zip(rows, self.numbers(rows).tolist(), strict=True):
            counts[places[contributor], group] += 1
        return np.asarray(counts / np.maximum(counts.sum(axis=0, keepdims=True), 1))


def design(rows: Sequence[Row], num_coalitions: int, constant: str, num_blocks: int | None = None) -> Design:
    """`num_coalitions` coalitions of blocks of `rows`, or all there are where there are fewer.

    Raises InvalidInput where there are fewer than two contributors (one contributor's influence is the whole
    adapter's), or a row id is there twice.
    """
    _check_coalitions(num_coalitions)
    _check_contributors({contributor for _, contributor in rows})
    wanted = max(FEWEST_BLOCKS, min(num_coalitions // 2, len(rows) // FEWEST_ROWS))
    blocks = deal_blocks(rows, num_blocks or wanted, constant)
    return Design(groups=blocks, members_MG=_coalitions(len(blocks), num_coalitions, constant))


def contributor_design(
    row_counts: Mapping[str, int], num_coalitions: int, constant: str, max_groups: int | None = None
) -> Design:
    """Coalitions of the contributors in `row_counts`, in groups where there are more than `max_groups`."""
    _check_coalitions(num_coalitions)
    _check_contributors(set(row_counts))
    groups = bank_groups(row_counts, max_groups or num_coalitions, constant)
    members_MG = _coalitions(len(groups), num_coalitions, constant)
    return Design(groups=groups, members_MG=members_MG, players="contributors")


def rows_of_counts(row_counts: Mapping[str, int]) -> list[Row]:
    """Rows that stand for contributors of whom only the numbers are known, as a plan needs them."""
    return [(f"{name}/{number}", name) for name, count in sorted(row_counts.items()) for number in range(count)]


def deal_blocks(rows: Sequence[Row], num_blocks: int, constant: str) -> tuple[tuple[str, ...], ...]:
    """Row ids in `num_blocks` blocks (or one row each) whose sizes differ by one at most."""
    twice = [row_id for row_id, times in Counter(row_id for row_id, _ in rows).items() if times > 1]
    if twice:
        raise InvalidInput(f"the row {twice[0]!r} is there twice", code="row_twice", param="row_id")
    number, over = min(num_blocks, len(rows)), len(rows) % min(num_blocks, len(rows))
    sizes = [len(rows) // number + (place < over) for place in range(number)]
    blocks: list[tuple[str, ...]] = []
    left: list[list[str]] = []
    for own in _dealt(rows, constant):
        while len(blocks) < number and len(own) >= sizes[len(blocks)]:
            size = sizes[len(blocks)]
            blocks.append(tuple(own[:size]))
            own = own[size:]
        left.append(own)
    rest = [row_id for own in sorted(left, key=len, reverse=True) for row_id in own]
    for size in sizes[len(blocks) :]:
        blocks.append(tuple(rest[:size]))
        rest = rest[size:]
    return tuple(blocks)


def bank_groups(row_counts: Mapping[str, int], max_groups: int, constant: str) -> tuple[tuple[str, ...], ...]:
    """Contributors in at most `max_groups` groups of about as many rows each."""
    names = sorted(row_counts)
    if len(names) <= max_groups:
        return tuple((name,) for name in names)
    key = dict(zip(names, generator(constant, "groups").random(len(names)).tolist(), strict=True))
    groups: list[list[str]] = [[] for _ in range(max_groups)]
    sizes = [0] * max_groups
    for name in sorted(names, key=lambda name: (-row_counts[name], key[name])):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(name)
        sizes[smallest] += row_counts[name]
    return tuple(tuple(sorted(group)) for group in groups)


def membership(groups: Sequence[Sequence[str]], present: Sequence[set[str]]) -> Membership:
    """[M, G]: whether all of a group is among the contributors `present` in each run."""
    return np.array([[all(name in there for name in group) for group in groups] for there in present])


def _dealt(rows: Sequence[Row], constant: str) -> list[list[str]]:
    """Each contributor's row ids, rows and contributors in the order of their hashes."""
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for row_id, contributor in rows:
        by_name[contributor].append(row_id)
    names = sorted(by_name, key=lambda name: digest_json([constant, "contributor", name]))
    return [sorted(by_name[name], key=lambda row_id: digest_json([constant, "row", row_id])) for name in names]


def _check_coalitions(num_coalitions: int) -> None:
    if num_coalitions < 2 or num_coalitions % 2:
        raise InvalidInput("coalitions come in pairs: their number is even", code="invalid_design", param="coalitions")


def _check_contributors(names: set[str]) -> None:
    if len(names) < 2:
        raise InvalidInput(
            "a bank needs two contributors: all of the gain belongs to one", code="one_contributor", param="rows"
        )


def _coalitions(num_groups: int, num_coalitions: int, constant: str) -> Membership:
    random = generator(constant, "coalitions")
    pairs: list[npt.NDArray[np.bool_]] = []
    seen: set[bytes] = set()
    for number in range(num_coalitions // 2):
        size = max(1, num_groups // 4) if number % 4 == 3 else num_groups // 2
        for _ in range(_TRIES):
            half = np.zeros(num_groups, dtype=bool)
            half[random.permutation(num_groups)[:size]] = True
            if half.tobytes() not in seen and (~half).tobytes() not in seen:
                break
        else:
            continue  # few groups: all coalitions of this size are there already
        seen |= {half.tobytes(), (~half).tobytes()}
        pairs += [half, ~half]
    return np.array(pairs)
