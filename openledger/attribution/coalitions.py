"""Which coalitions of contributors a bank trains: random, balanced, and public.

Every coalition comes with its complement, so that each group is in exactly half of them. Three pairs of four are
halves; in every fourth pair one side has a quarter of the groups and the other the rest, because halves alone can't
tell what all groups add together from what is there without any.

Contributors are put in groups where there are more than a bank can tell apart: the largest stay alone, the others are
dealt out by the public constant.

Shapes: M members, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openledger.core.errors import InvalidInput
from openledger.training.recipe import generator

DEFAULT_COALITIONS = 32
_TRIES = 64

Membership = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """`groups` of contributor ids; `members_MG` says which group's rows each member is trained on."""

    groups: tuple[tuple[str, ...], ...]
    members_MG: Membership


def design(row_counts: Mapping[str, int], num_coalitions: int, constant: str, max_groups: int | None = None) -> Design:
    """`num_coalitions` coalitions of the contributors in `row_counts`, or all there are where there are fewer.

    Raises InvalidInput where there are fewer than two contributors: one contributor's influence is the whole adapter's.
    """
    if num_coalitions < 2 or num_coalitions % 2:
        raise InvalidInput("coalitions come in pairs: their number is even", code="invalid_design", param="coalitions")
    groups = bank_groups(row_counts, max_groups or num_coalitions, constant)
    if len(groups) < 2:
        raise InvalidInput(
            "a bank needs two contributors: all of the gain belongs to one", code="one_contributor", param="rows"
        )
    return Design(groups=groups, members_MG=_coalitions(len(groups), num_coalitions, constant))


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
