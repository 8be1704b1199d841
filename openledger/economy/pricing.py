"""What an answer costs, where each part of the fee goes, and the statement that says so. Integers; stores nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.money import SUPPLY_NANO, format_money, split
from openledger.core.values import AdapterTerms
from openledger.economy.parameters import Parameters
from openledger.ledger.accounts import HOLDS, TREASURY, pool_account
from openledger.ledger.statements import USAGE, fee_nano, parts_by_account
from openledger.ledger.transfers import Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What of an answer the fee and the log need: who, how many tokens, and the salted commitment to the rest.
    `request` stands for the idempotency key, under which it is sold once; logs of before have none."""

    answer_id: str
    account: str
    period: str
    num_prompt_tokens: int
    num_completion_tokens: int
    commitment: str
    request: str = ""


def price(terms: AdapterTerms, num_prompt_tokens: int, num_completion_tokens: int, parameters: Parameters) -> int:
    """The fee in nano-OPEN. Raises InvalidInput for negative counts or prices, and for more than the whole supply."""
    prices = (terms.prompt_price_nano, terms.completion_price_nano)
    if any(type(number) is not int or number < 0 for number in (num_prompt_tokens, num_completion_tokens, *prices)):
        raise InvalidInput("tokens and prices are whole numbers from 0", code="invalid_price", param="terms")
    if max(prices) > parameters.max_price_nano:
        raise InvalidInput(
            f"a token costs at most {format_money(parameters.max_price_nano)}",
            code="invalid_price",
            param="terms",
            fix="lower the adapter's prices; governance sets the bound (max_price_nano)",
        )
    fee = fee_nano(num_prompt_tokens, num_completion_tokens, _prices(terms, parameters))
    if fee > SUPPLY_NANO:
        raise InvalidInput("the answer would cost more than the whole supply", code="invalid_price", param="max_tokens")
    return fee


def usage_statement(
    metered: Metered, terms: AdapterTerms, parameters: Parameters, stakers: str = TREASURY
) -> dict[str, Any]:
    """What the log says of one answer. `stakers` is where their part waits; the treasury's while nothing is staked."""
    fee = price(terms, metered.num_prompt_tokens, metered.num_completion_tokens, parameters)
    return {
        "format": USAGE,
        "answer_id": metered.answer_id,
        "account": metered.account,
        "adapter": terms.adapter,
        **lineage(terms),
        "period": metered.period,
        "commitment": metered.commitment,
        "num_prompt_tokens": metered.num_prompt_tokens,
        "num_completion_tokens": metered.num_completion_tokens,
        **_prices(terms, parameters),
        "fee_nano": fee,
        "split": parameters.split,
        "parts_nano": split(fee, parameters.split),
        "accounts": {
            "contributors": pool_account(terms.adapter, metered.period),
            "owner": terms.owner_account,
            "stakers": stakers,
            "treasury": TREASURY,
            **_further_accounts(parameters),
        },
        "parameters": parameters.version,
        **({"request": metered.request} if metered.request else {}),
    }


def lineage(terms: AdapterTerms) -> dict[str, Any]:
    """Which adapter and which Datanet version stand behind an answer."""
    return {
        "adapter_digest": terms.adapter_digest,
        "datanet": terms.datanet,
        "datanet_version": terms.datanet_version,
        "row_root": terms.row_root,
    }


def terms_of(usage: Mapping[str, Any]) -> AdapterTerms:
    """Under which an answer was sold."""
    return AdapterTerms(
        adapter=usage["adapter"],
        **{name: usage[name] for name in ("adapter_digest", "datanet", "datanet_version", "row_root")},
        owner_account=usage["accounts"]["owner"],
        prompt_price_nano=usage["prompt_price_nano"],
        completion_price_nano=usage["completion_price_nano"],
    )


def hold_id(answer_id: str) -> str:
    return f"{answer_id}.hold"


def hold_transfer(answer_id: str, account: str, max_fee_nano: int, timeout_ms: int) -> Transfer:
    return Transfer(
        transfer_id=hold_id(answer_id),
        debit=account,
        credit=HOLDS,
        amount_nano=max_fee_nano,
        code="hold",
        reference=answer_id,
        kind="pending",
        timeout_ms=timeout_ms,
    )


def void_transfer(answer_id: str, account: str, max_fee_nano: int) -> Transfer:
    return Transfer(
        transfer_id=f"{answer_id}.void",
        debit=account,
        credit=HOLDS,
        amount_nano=max_fee_nano,
        code="release",
        reference=answer_id,
        kind="void",
        pending_id=hold_id(answer_id),
    )


def fee_id(answer_id: str) -> str:
    """Of the transfer that takes an answer's fee; its batch states the answer."""
    return f"{answer_id}.fee"


def usage_transfers(usage: dict[str, Any]) -> list[Transfer]:
    """The fee out of its hold, and each part to where it goes; one linked batch."""
    answer_id = usage["answer_id"]
    fee = Transfer(
        transfer_id=fee_id(answer_id),
        debit=usage["account"],
        credit=HOLDS,
        amount_nano=usage["fee_nano"],
        code="fee",
        reference=answer_id,
        kind="post",
        pending_id=hold_id(answer_id),
    )
    parts = parts_by_account(usage["parts_nano"], usage["accounts"])
    return [fee, *(_part(answer_id, place, *part) for place, part in enumerate(sorted(parts.items())))]


def _part(answer_id: str, place: int, account: str, amount_nano: int) -> Transfer:
    return Transfer(
        transfer_id=f"{answer_id}.part{place}",
        debit=HOLDS,
        credit=account,
        amount_nano=amount_nano,
        code="fee_part",
        reference=answer_id,
    )


def _further_accounts(parameters: Parameters) -> dict[str, str]:
    """Who runs it, where they get something of a fee; the treasury for those without an account."""
    accounts = {
        "compute": parameters.compute_account,
        "reviewers": parameters.reviewers_account,
        "licensor": parameters.licensor_account,
    }
    split_ppm = parameters.split
    return {role: account or TREASURY for role, account in accounts.items() if role in split_ppm}


def _prices(terms: AdapterTerms, parameters: Parameters) -> dict[str, int]:
    return {
        "prompt_price_nano": terms.prompt_price_nano,
        "completion_price_nano": terms.completion_price_nano,
        "minimum_fee_nano": parameters.minimum_fee_nano,
    }
