"""What people claim, over a real economy, ledger and Datanets: each step in the log, also after lost answers."""

import asyncio
import inspect

import pytest

from openledger.core.clock import ManualClock
from openledger.core.errors import Unavailable
from openledger.core.signing import SigningKey
from openledger.core.values import RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.seals import SEAL_MS, seal_of
from openledger.datanets.shard import ShardHost
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.ledger.seals import OPENING, SEAL
from openledger.platform.claims import Claims

ADA, BOB = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
ROWS = tuple(
    RowDraft(prompt=f"What does {name}.{name} do?", completion=f"It joins {name} with every {name} that {more} found.")
    for name, more in (("alpha", "reading"), ("gamma", "sorting"), ("delta", "parsing"))
)


class Remote:
    """An object as Ray hands it out. The next call of a method in `lost` is made, and its answer is lost."""

    def __init__(self, target):
        self._target, self.lost = target, set()

    def __getattr__(self, name):
        method = getattr(self._target, name)

        class Call:
            @staticmethod
            async def remote(*arguments, **more):
                result = method(*arguments, **more)
                if name in self.lost:
                    self.lost.discard(name)
                    raise Unavailable("no answer", code="actor_unavailable")
                return result

        return Call


class House(Claims):
    """Claims over actors in this process, and what they are made of."""

    def __init__(self, folder):
        self.clock = ManualClock()
        self.ledger = Ledger(folder / "ledger.db", self.clock, SigningKey(b"k" * 32), "openledger/test")
        self.economy = Economy(self.ledger, folder, self.clock)
        self.datanets = Datanets(folder, [ShardHost(folder / "shard-0")], self.clock)
        self.datanets.create("docs", "What functions do", "user:owner")
        super().__init__(Remote(self.datanets), Remote(self.economy))

    async def contribute(self, contribution):
        receipt = await self._datanets.contribute.remote(contribution)
        await self._log_seals()
        return receipt

    def logged(self):
        """Formats of what the log says of seals, in its order."""
        entries = self.ledger.transfers("holds:seals") if self.has_seals() else []
        seqs = sorted({entry.seq for entry in entries})
        return [self.ledger.batch(seq).statement["format"] for seq in seqs]

    def has_seals(self):
        return "holds:seals" in {balance.account_id for balance in self.ledger.balances()}

    def close(self):
        self.datanets.close()
        self.economy.close()
        self.ledger.close()


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.close()


def run(awaitable):
    return asyncio.run(awaitable) if inspect.iscoroutine(awaitable) else awaitable


def rows(key=ADA, nonce="0"):
    return sign_contribution(key, "docs", ROWS, nonce)


class TestASeal:
    def test_is_in_the_log_when_it_is_answered_and_its_rows_when_they_are(self, house):
        told = run(house.seal(seal_of(ADA, rows())))
        assert (told.state, house.logged()) == ("waiting", [SEAL])
        run(house.contribute(rows()))
        assert house.logged() == [SEAL, OPENING]
        found = run(house.find_seal("docs", told.contributor_id, told.digest))
        assert found.state == "opened"
        house.ledger.audit()

    def test_keeps_its_place_before_who_copies_what_was_shown_then(self, house):
        run(house.seal(seal_of(ADA, rows())))
        copy, original = run(house.contribute(rows(BOB))), run(house.contribute(rows()))
        house.datanets.publish("docs")
        pairs = zip(copy.verdicts, original.verdicts, strict=True)
        assert house.datanets.copies("docs", 1) == {second.row_id: first.row_id for second, first in pairs}

    @pytest.mark.parametrize("lost", ["seal", "log_seal", "unlogged_seals", "mark_seal_logged"])
    def test_is_logged_once_whichever_answer_was_lost(self, house, lost):
        seal = seal_of(ADA, rows())
        (house._economy if lost == "log_seal" else house._datanets).lost.add(lost)
        with pytest.raises(Unavailable):
            run(house.seal(seal))
        first = run(house.seal(seal))
        assert (house.logged(), house.datanets.unlogged_seals()) == ([SEAL], [])
        assert run(house.seal(seal)) == first
        house.ledger.audit()

    @pytest.mark.parametrize("lost", ["contribute", "log_opening", "mark_seal_logged"])
    def test_is_opened_once_whichever_answer_was_lost(self, house, lost):
        run(house.seal(seal_of(ADA, rows())))
        (house._economy if lost == "log_opening" else house._datanets).lost.add(lost)
        with pytest.raises(Unavailable):
            run(house.contribute(rows()))
        run(house.contribute(rows()))
        assert (house.logged(), house.datanets.unlogged_seals()) == ([SEAL, OPENING], [])
        house.ledger.audit()

    def test_that_was_never_answered_is_put_in_the_log_by_the_next_call(self, house):
        house.datanets.seal(seal_of(ADA, rows()))
        run(house.seal(seal_of(BOB, rows(BOB))))
        assert house.logged() == [SEAL, SEAL]

    def test_that_has_expired_is_not_opened_in_the_log(self, house):
        run(house.seal(seal_of(ADA, rows())))
        house.clock.advance(SEAL_MS + 1)
        run(house.contribute(rows()))
        assert house.logged() == [SEAL]
        house.ledger.audit()
