"""Tenants: each account's key for what it asked and was answered, and whether that is kept at all.

    answers.key (file, 0600)  wraps  a tenant's AES-256-GCM key (table)  seals  its payloads

Without a tenant's key its payloads are noise, also where copies of them survive. Payloads from before there were such
keys were sealed by the file's key itself; they have no mark in front, and still open.
"""

import os
from dataclasses import dataclass

import apsw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from openledger.core.database import writing
from openledger.core.errors import Corrupt
from openledger.economy.payloads import PayloadCipher

SCHEMA = """
CREATE TABLE IF NOT EXISTS tenants(
  account TEXT PRIMARY KEY, wrapped_key BLOB, keep INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;
"""
_MARK = b"olpay/2\n"
_KEY_BITS, _NONCE_BYTES = 256, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What a tenant asked for, and what is kept of its answers: how many, and whether there is a key to open them."""

    account: str
    keep: bool
    num_kept: int
    has_key: bool


class TenantStore:
    def __init__(self, connection: apsw.Connection, master: PayloadCipher):
        self._db = connection
        self._master = master

    def keeps(self, account: str) -> bool:
        """Whether `account`'s answers are kept until they are settled; yes, unless it asked otherwise."""
        row = self._db.execute("SELECT keep FROM tenants WHERE account = ?", (account,)).fetchone()
        return row is None or bool(row[0])

    def has_key(self, account: str) -> bool:
        """Whether anything that was sealed for `account` can still be opened."""
        return self._cipher(account) is not None

    def set_keep(self, account: str, keep: bool) -> None:
        query = "INSERT INTO tenants(account, keep) VALUES (?, ?) ON CONFLICT DO UPDATE SET keep = excluded.keep"
        with writing(self._db):
            self._db.execute(query, (account, int(keep)))

    def delete_key(self, account: str) -> None:
        """What was sealed for `account` never opens again; also gone from the write-ahead log. The next answer gets a
        new key."""
        with writing(self._db):
            self._db.execute("UPDATE tenants SET wrapped_key = NULL WHERE account = ?", (account,))
        self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def request_tag(self, account: str, idempotency_key: str) -> str:
        """What the log says of the key under which something was sold, which tells nobody else anything."""
        return self._master.tag(account, idempotency_key)

    def seal(self, account: str, name: str, data: bytes) -> bytes:
        """Encrypt `data` so that it opens only for the same account and name. A new key is durable before its use."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._cipher(account) or self._new_cipher(account)
        return _MARK + nonce + cipher.encrypt(nonce, data, _bound(account, name))

    def open(self, account: str, name: str, sealed: bytes) -> bytes:
        """Raises Corrupt where the bytes, the account, the name or a key are not those of `seal`."""
        if not sealed.startswith(_MARK):
            return self._master.open(name, sealed)
        cipher, body = self._cipher(account), sealed[len(_MARK) :]
        if cipher is None:
            raise _unreadable(name, f"{account} has no key any more")
        try:
            return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], _bound(account, name))
        except (InvalidTag, ValueError) as error:
            raise _unreadable(name, "it is damaged, or another tenant's") from error

    def _cipher(self, account: str) -> AESGCM | None:
        row = self._db.execute("SELECT wrapped_key FROM tenants WHERE account = ?", (account,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            return None
        return AESGCM(self._master.open(_key_name(account), row[0]))

    def _new_cipher(self, account: str) -> AESGCM:
        key = AESGCM.generate_key(bit_length=_KEY_BITS)
        query = """INSERT INTO tenants(account, wrapped_key) VALUES (?, ?)
                   ON CONFLICT DO UPDATE SET wrapped_key = excluded.wrapped_key"""
        with writing(self._db):
            self._db.execute(query, (account, self._master.seal(_key_name(account), key)))
        return AESGCM(key)


def _key_name(account: str) -> str:
    return f"key of {account}"


def _bound(account: str, name: str) -> bytes:
    return f"{account}\n{name}".encode()


def _unreadable(name: str, reason: str) -> Corrupt:
    return Corrupt(
        f"the stored payload of {name} doesn't decrypt: {reason}",
        code="corrupt_payload",
        param=name,
        fix="restore economy.db and answers.key that belong together",
    )
