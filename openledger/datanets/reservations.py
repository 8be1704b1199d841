"""Names of new Datanets that accounts are paying for: nobody else's meanwhile, and counted among their own.

In memory alone, and for a minute: whoever was cut off asks again.
"""

_HELD_MS = 60_000


class Reservations:
    """Times are the caller's, in milliseconds."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, int]] = {}

    def take(self, name: str, owner: str, now_ms: int) -> None:
        self._held[name] = (owner, now_ms + _HELD_MS)

    def release(self, name: str, owner: str) -> None:
        """Nothing where it isn't `owner`'s. May be repeated."""
        if self._held.get(name, ("", 0))[0] == owner:
            del self._held[name]

    def owners(self, now_ms: int) -> dict[str, str]:
        """Who holds what, by name."""
        self._held = {name: held for name, held in self._held.items() if held[1] > now_ms}
        return {name: owner for name, (owner, _) in self._held.items()}
