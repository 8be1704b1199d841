"""What of a verdict is told to whom: which row a copy repeats, or only that there is one.

A row is compared with those of every Datanet of the installation. Which one it repeats stays in the registry as the
gate found it; what leaves the Datanets names that row to whoever may know it, and says `PRIVATE_ROW` to everybody else:

    anybody            where everybody may train on its Datanet
    its contributor    wherever it stands
    a party            of a Datanet that it owns, or that its owner lets it contribute to or train on

Permissions are asked each time a verdict is told: a Datanet that is closed later names none of its rows any more. A row
of the same contribution is always named, as the same answer has its id.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import get_args

from openledger.core.appealing import Judged
from openledger.core.values import PRIVATE_ROW, Verdict
from openledger.datanets.registry import Registry
from openledger.datanets.terms import Action

ANYBODY = ""


class Disclosure:
    def __init__(self, registry: Registry):
        self._registry = registry

    def told(self, verdicts: Sequence[Verdict], party: str, now_ms: int) -> tuple[Verdict, ...]:
        """The verdicts of one contribution as `party` may read them: a contributor, an account, or ANYBODY."""
        originals = {one.duplicate_of for one in verdicts if one.duplicate_of} - {one.row_id for one in verdicts}
        hidden = originals - self._known(originals, party, now_ms)
        return tuple(replace(one, duplicate_of=PRIVATE_ROW) if one.duplicate_of in hidden else one for one in verdicts)

    def told_openly(self, judged: Judged, now_ms: int) -> Judged:
        """As the log may say it, which anybody reads. Whose row it is tells as much as its id."""
        if not judged.duplicate_of or self._known({judged.duplicate_of}, ANYBODY, now_ms):
            return judged
        return replace(judged, duplicate_of=PRIVATE_ROW, rival="")

    def _known(self, row_ids: set[str], party: str, now_ms: int) -> set[str]:
        names = {party, party.removeprefix("contributor:"), f"contributor:{party}"}  # a contributor, and his account

        @cache
        def is_open(datanet: str) -> bool:
            return self._may_know(datanet, names, now_ms)

        origins = {row_id: self._registry.origin(row_id) for row_id in row_ids}
        return {row_id for row_id, origin in origins.items() if origin and (origin[1] in names or is_open(origin[0]))}

    def _may_know(self, datanet: str, names: set[str], now_ms: int) -> bool:
        book = self._registry.terms
        if book.terms(datanet).train == "open" or self._registry.datanet(datanet).owner in names:
            return True
        given = (book.permission(datanet, name, action) for name in names for action in get_args(Action))
        return any(one is not None and one.allows(now_ms) for one in given)
