"""An adapter's terms as text, so that a hold keeps the terms it was placed under."""

import json
from dataclasses import asdict

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.ids import check_name
from openledger.core.values import AdapterTerms
from openledger.ledger.accounts import check_account_id


def check_terms(terms: AdapterTerms) -> AdapterTerms:
    """`terms` if answers can be sold under them. Raises InvalidInput otherwise."""
    check_name(terms.adapter, "adapter")
    check_payee(terms.owner_account, "owner_account")
    of_merge = not (terms.datanet or terms.datanet_version or terms.row_root)  # its parents name their Datanets
    if not terms.adapter_digest or not (terms.datanet or of_merge):
        raise InvalidInput("terms name an adapter's digest and its Datanet", code="invalid_terms", param="terms")
    return terms


def check_payee(account: str, param: str) -> str:
    """`account` if it is a person's. Raises InvalidInput for the house's own accounts and pools."""
    if check_account_id(account, param).partition(":")[0] not in ("user", "contributor"):
        raise InvalidInput(
            f"{account!r} can't be paid: it is nobody's",
            code="invalid_account",
            param=param,
            fix="write it like user:alice or contributor:ctr_...",
        )
    return account


def encode_terms(terms: AdapterTerms) -> str:
    return canonical_json(asdict(terms)).decode()


def decode_terms(text: str) -> AdapterTerms:
    return AdapterTerms(**json.loads(text))
