"""A finished bank as it is found again at settlement, by its adapter's folder alone.

    ADAPTER/run.json          the run that the bank repeats
    ADAPTER/bank/bank.json    the bank's blocks of rows, and which of them each member was trained on; written last
    ADAPTER/bank/*.safetensors
    ADAPTER/bank/served/      members as PEFT folders, once an engine was asked of them

A bank of format 1 has groups of contributors for players. It stays usable as it is: a settlement that pays by it says
`"players": "contributors"`.

Knows neither rows nor how members are trained (`bank.py`): to score an answer under them, neither is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import adapter_digest
from openledger.attribution.bank import Bank, BankPlan
from openledger.attribution.coalitions import Design, Players
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.lora import holds_lora, save_lora
from openledger.training.packed import score_members
from openledger.training.record import load_run, load_weights

BANK_FORMAT_1 = "openledger.bank/1"
BANK_FORMAT = "openledger.bank/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBank:
    """`coalitions` are files in the order of `design.members_MG`. `withouts` has the adapter that never saw a
    contributor's rows, for those contributors for whom it was trained."""

    adapter_digest: str
    design: Design
    coalitions: tuple[Path, ...]
    twins: tuple[Path, ...]
    withouts: dict[str, Path]

    @property
    def digest(self) -> str:
        """Of the design and the members that outcomes are measured with: two banks of one digest are one instrument.
        A member's file is named by all that decides its weights."""
        names = [[path.name for path in paths] for paths in (self.coalitions, self.twins)]
        return digest_json([self.design.groups, self.design.members_MG.tolist(), names])


def finish_bank(bank: Bank, plan: BankPlan, digest: str) -> None:
    """Write bank.json. Raises NotFound (`incomplete_bank`) where a member isn't trained yet."""
    bank.weights(plan.members)
    kept = kept_bank(bank, plan, digest)
    document = {
        "format": BANK_FORMAT,
        "adapter_digest": digest,
        "players": plan.design.players,
        "groups": plan.design.groups,
        "coalitions": [
            {"file": path.name, "groups": [int(number) for number in np.flatnonzero(present_G)]}
            for path, present_G in zip(kept.coalitions, kept.design.members_MG, strict=True)
        ],
        "twins": [path.name for path in kept.twins],
        "withouts": {contributor: path.name for contributor, path in kept.withouts.items()},
    }
    write_json_durably(bank.folder / "bank.json", document)


def kept_bank(bank: Bank, plan: BankPlan, digest: str) -> KeptBank:
    """What `find_bank` finds once a bank of `plan` is finished."""
    return KeptBank(
        adapter_digest=digest,
        design=plan.design,
        coalitions=tuple(bank.path(member) for member in plan.coalitions),
        twins=tuple(bank.path(member) for member in plan.twins),
        withouts={member.name.removeprefix("without-"): bank.path(member) for member in plan.withouts},
    )


def find_bank(adapter_folder: Path, digest: str) -> KeptBank | None:
    """The adapter's bank; None where it has none, or one that isn't finished. Raises Corrupt (`corrupt_bank`),
    InvalidInput (`wrong_bank`) for another adapter's."""
    folder = adapter_folder / "bank"
    if not (folder / "bank.json").exists():
        return None
    try:
        values = json.loads((folder / "bank.json").read_text())
        if values["format"] not in (BANK_FORMAT_1, BANK_FORMAT):
            raise ValueError(f"unknown format {values['format']!r}")
        players: Players = "contributors" if values["format"] == BANK_FORMAT_1 else values["players"]
        if players not in get_args(Players):
            raise ValueError(f"unknown players {players!r}")
        groups = tuple(tuple(group) for group in values["groups"])
        members_MG = np.zeros((len(values["coalitions"]), len(groups)), dtype=bool)
        for number, coalition in enumerate(values["coalitions"]):
            members_MG[number, coalition["groups"]] = True
        found = KeptBank(
            adapter_digest=values["adapter_digest"],
            design=Design(groups=groups, members_MG=members_MG, players=players),
            coalitions=tuple(folder / coalition["file"] for coalition in values["coalitions"]),
            twins=tuple(folder / name for name in values["twins"]),
            withouts={contributor: folder / name for contributor, name in values["withouts"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise Corrupt(
            f"the bank in {folder} can't be read: {error}",
            code="corrupt_bank",
            param=str(folder),
            fix="remove bank.json; the bank is finished again from its members",
        ) from error
    if found.adapter_digest != digest:
        raise InvalidInput(f"{folder} is the bank of another adapter", code="wrong_bank", param="bank")
    return found


def write_without(adapter_folder: Path, kept: KeptBank, contributor: str, out: Path) -> str:
    """Write the adapter that never saw a contributor's rows as a PEFT folder at `out`; its digest.

    For a withdrawal: it can be served at once, until a clean one is trained. Raises NotFound (`no_such_member`) where
    it wasn't trained with the bank.
    """
    if contributor not in kept.withouts:
        raise NotFound(
            f"the bank has no adapter without {contributor}",
            code="no_such_member",
            param="contributor",
            fix="train it: the same bank with this contributor in `without`",
        )
    save_lora(out, adapter_folder, load_weights(kept.withouts[contributor]))
    return adapter_digest(out)


def member_adapters(adapter_folder: Path, kept: KeptBank) -> list[tuple[str, Path]]:
    """The coalitions' adapters as an engine loads them: each one's digest and PEFT folder below bank/served, in the
    order of `kept.coalitions`. A folder that doesn't hold the member's matrices is written anew. Raises Corrupt for a
    damaged member."""
    folders = [adapter_folder / "bank" / "served" / path.stem for path in kept.coalitions]
    for path, folder in zip(kept.coalitions, folders, strict=True):
        matrices = load_weights(path)
        if not holds_lora(folder, adapter_folder, matrices):
            save_lora(folder, adapter_folder, matrices)
    return [(adapter_digest(folder), folder) for folder in folders]


def bank_outcomes(
    adapter_folder: Path, kept: KeptBank, base: BaseModel, answers: Sequence[Example], *, device: str = "cpu"
) -> npt.NDArray[np.float64]:
    """Mean log-likelihood per token of each answer under each coalition's adapter, [M, Q], in nats.

    Raises InvalidInput (`other_base`) for a run over another base, Corrupt for a damaged member.
    """
    record = load_run(adapter_folder)
    if record.base_digest != base.digest:
        raise InvalidInput("the bank was trained over another base model", code="other_base", param="base")
    weights = [load_weights(path) for path in kept.coalitions]
    found_MQ = score_members(base, record.recipe, weights, answers, device=device)
    return np.asarray(found_MQ.numpy(), dtype=np.float64)
