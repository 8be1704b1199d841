"""Vouches: contributors of a Datanet who vouch for others, and seeds whom its owner trusts. Trust flows from these.

    extra rows a day = quota_high_rows x seeds x trust        trust: of `trust.seeded_trust`, all of it sums to one

So a newcomer whom somebody trusted vouches for may send more at once, and all identities that were ever made up share
what flows to them over the edges from outside. Whose reputation has fallen below where it started loses as much of it.
A vouch pays nothing, and can be taken back.
"""

import apsw

from openledger.core.database import writing
from openledger.core.errors import InvalidInput
from openledger.core.ids import check_name
from openledger.economy.parameters import Parameters
from openledger.economy.trust import WHOLE, seeded_trust
from openledger.ledger.accounts import check_account_id

MOST_VOUCHES = 50
SCHEMA = """
CREATE TABLE IF NOT EXISTS trust_seeds(
  datanet TEXT NOT NULL, contributor TEXT NOT NULL, PRIMARY KEY (datanet, contributor)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vouches(
  datanet TEXT NOT NULL, voucher TEXT NOT NULL, contributor TEXT NOT NULL, PRIMARY KEY (datanet, voucher, contributor)
) STRICT, WITHOUT ROWID;
"""


class VouchBook:
    def __init__(self, connection: apsw.Connection):
        self._db = connection
        self._trust: dict[str, dict[str, int]] = {}  # by Datanet, until something changes there

    def seed(self, datanet: str, contributor: str, *, trusted: bool) -> None:
        """Name a contributor whom the Datanet's owner trusts, or don't any more. May be repeated."""
        self._check(datanet, contributor)
        self._set("trust_seeds", (datanet, contributor), there=trusted)

    def vouch(self, datanet: str, voucher: str, contributor: str, *, vouches: bool) -> None:
        """Vouch for a contributor, or don't any more. May be repeated. Raises InvalidInput (`invalid_trust`) for
        oneself, or for more than 50."""
        self._check(datanet, contributor)
        check_account_id(voucher, "voucher")
        if voucher == contributor:
            raise InvalidInput("nobody vouches for himself", code="invalid_trust", param="contributor_id")
        if vouches and len(self.vouched_by(datanet, voucher) - {contributor}) >= MOST_VOUCHES:
            raise InvalidInput(
                f"{voucher} vouches for {MOST_VOUCHES} others already",
                code="invalid_trust",
                param="contributor_id",
                fix="take another vouch back first",
            )
        self._set("vouches", (datanet, voucher, contributor), there=vouches)

    def seeds(self, datanet: str) -> set[str]:
        rows = self._db.execute("SELECT contributor FROM trust_seeds WHERE datanet = ?", (datanet,))
        return {str(row[0]) for row in rows}

    def vouched_by(self, datanet: str, voucher: str) -> set[str]:
        query = "SELECT contributor FROM vouches WHERE datanet = ? AND voucher = ?"
        return {str(row[0]) for row in self._db.execute(query, (datanet, voucher))}

    def extra_rows(self, datanet: str, contributor: str, ppm: int, parameters: Parameters) -> int:
        """Rows a day that a contributor of reputation `ppm` may send because others vouch for him."""
        if datanet not in self._trust:
            self._trust[datanet] = self._flowed(datanet)
        trust, start = self._trust[datanet].get(contributor, 0), parameters.reputation_start_ppm
        rows = parameters.quota_high_rows * len(self.seeds(datanet)) * trust // WHOLE
        return rows if ppm >= start else rows * ppm // start

    def _flowed(self, datanet: str) -> dict[str, int]:
        """Over those whom a path of vouches leads to from a seed: others get nothing, however many they are."""
        seeds = self.seeds(datanet)
        vouches, waiting = dict[str, set[str]](), sorted(seeds)
        while waiting:
            voucher = waiting.pop()
            if voucher not in vouches:
                vouches[voucher] = self.vouched_by(datanet, voucher)
                waiting += vouches[voucher]
        return seeded_trust(vouches, seeds) if seeds else {}

    def _check(self, datanet: str, contributor: str) -> None:
        check_name(datanet, "datanet")
        check_account_id(contributor, "contributor_id")

    def _set(self, table: str, values: tuple[str, ...], *, there: bool) -> None:
        columns = ("datanet", "contributor") if table == "trust_seeds" else ("datanet", "voucher", "contributor")
        marks, named = ", ".join("?" * len(values)), " AND ".join(f"{column} = ?" for column in columns)
        change = f"INSERT OR IGNORE INTO {table} VALUES ({marks})" if there else f"DELETE FROM {table} WHERE {named}"
        with writing(self._db):
            self._db.execute(change, values)
        self._trust.pop(values[0], None)
