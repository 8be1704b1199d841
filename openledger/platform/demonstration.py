"""What the quickstart contributes and asks: which installed packages stand for which Datanet and contributor.

Among the contributors stand three bad ones, each in a Datanet of his own: a copier who edits another's rows lightly,
a spammer who sends noise, and a splitter who shows one source under three names.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openledger.adapters.base_model import EMBEDDED
from openledger.core.hashing import digest_json
from openledger.core.values import RowDraft
from openledger.datanets.docstrings import package_rows
from openledger.datanets.shingles import ShingleFilter

Kind = Literal["honest", "copier", "spammer", "splitter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationDatanet:
    """`contributors` are modules whose documentation strings they sign; `new` are packages nobody contributes,
    from which the unseen questions come."""

    name: str
    summary: str
    contributors: tuple[str, ...]
    new: tuple[str, ...]


DATANETS = (
    DemonstrationDatanet(
        name="python-stdlib",
        summary="What the classes and functions of Python's standard library do",
        contributors=(
            "asyncio", "email", "http", "logging", "xml", "importlib", "multiprocessing", "inspect", "pathlib",
            "tarfile",
        ),
        new=("packaging", "click", "requests", "rich"),
    ),
    DemonstrationDatanet(
        name="tables",
        summary="Arrays and tables: numpy, pandas and pyarrow",
        contributors=(
            "numpy.lib", "numpy.ma", "numpy.polynomial", "numpy._core", "pandas.core", "pandas.io", "pandas.plotting",
            "pyarrow",
        ),
        new=("fsspec", "jsonschema"),
    ),
    DemonstrationDatanet(
        name="deep-learning",
        summary="Building and running neural networks: torch and transformers",
        contributors=(
            "torch.nn", "torch.optim", "torch.utils", "torch.distributions", "torch.fx", "torch.ao",
            "transformers.generation", "transformers.utils",
        ),
        new=("peft", "accelerate", "huggingface_hub"),
    ),
    DemonstrationDatanet(
        name="distributed",
        summary="Distributed computing: ray's libraries and torch.distributed",
        contributors=(
            "ray.data", "ray.serve", "ray.train", "ray.tune", "ray.util", "ray.autoscaler", "ray.dashboard",
            "torch.distributed",
        ),
        new=("aiohttp", "starlette", "fastapi", "httpx"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributor:
    """`of` names the honest contributor whom a copier copies, or the source that a splitter splits."""

    name: str
    datanet: str
    kind: Kind
    drafts: tuple[RowDraft, ...]
    of: str = ""


COPIED, SPLIT, NUM_SPLITS = "email", "torch.ao", 3
SEEN = 0.8
_ROWS_PER_CONTRIBUTOR = 90
_BAD_ROWS = 60


def contributors(datanet: DemonstrationDatanet, rows_per_contributor: int = _ROWS_PER_CONTRIBUTOR) -> list[Contributor]:
    """Everybody who contributes to `datanet`, in the order in which they do."""
    found: list[Contributor] = []
    for module in datanet.contributors:
        drafts = module_drafts(module, rows_per_contributor)
        if module == SPLIT:
            found += _splitters(datanet.name, module, drafts)
        else:
            found.append(Contributor(name=module, datanet=datanet.name, kind="honest", drafts=drafts))
    original = next((c for c in found if c.name == COPIED), None)
    if original is not None:
        found.append(_copier(original))
    if datanet.name == "tables":
        found.append(_spammer(datanet.name))
    return found


def module_drafts(module: str, limit: int) -> tuple[RowDraft, ...]:
    """At most `limit` of the module's rows, drawn by a hash so that every part of it is represented.

    Rows whose words the embedded base model has met in pretraining (SEEN of their shingles or more) are left out: what
    a model knows already shows no influence.
    """
    seen = ShingleFilter.load(EMBEDDED / "seen.bloom")
    rows = sorted(package_rows(module), key=lambda row: digest_json(row.source))
    unseen = [row for row in rows if seen.containment(row.completion) < SEEN]
    return tuple(RowDraft(prompt=row.prompt, completion=row.completion, source=row.source) for row in unseen[:limit])


def new_questions(datanet: DemonstrationDatanet, limit: int) -> tuple[RowDraft, ...]:
    """Questions (with their packages' own answers) about packages that nobody contributed, in turn."""
    each = -(-limit // len(datanet.new))
    return tuple(draft for package in datanet.new for draft in module_drafts(package, each))[:limit]


def _splitters(datanet: str, module: str, drafts: Sequence[RowDraft]) -> list[Contributor]:
    return [
        Contributor(
            name=f"{module} ({part + 1} of {NUM_SPLITS})",
            datanet=datanet,
            kind="splitter",
            drafts=tuple(drafts[part::NUM_SPLITS]),
            of=module,
        )
        for part in range(NUM_SPLITS)
    ]


def _copier(original: Contributor) -> Contributor:
    drafts = tuple(_edited(draft, number) for number, draft in enumerate(original.drafts[:_BAD_ROWS]))
    return Contributor(name="copier", datanet=original.datanet, kind="copier", drafts=drafts, of=original.name)


def _edited(draft: RowDraft, number: int) -> RowDraft:
    """The same row with one word dropped, doubled, replaced or put in front, in turn."""
    words = draft.completion.split()
    place = random.Random(f"copier-{number}").randrange(len(words))
    edits = (
        [*words[:place], *words[place + 1 :]],
        [*words[:place], words[place], *words[place:]],
        [*words[:place], "also", *words[place:]],
        ["Basically:", *words],
    )
    return RowDraft(
        prompt=draft.prompt.replace("What", "Tell me what", 1), completion=" ".join(edits[number % 4]), source="notes"
    )


def _spammer(datanet: str) -> Contributor:
    chance = random.Random("spammer")
    letters = "qwxzjkvbpfgh0123456789#@!%&"
    drafts = []
    for number in range(_BAD_ROWS):
        noise = " ".join("".join(chance.choices(letters, k=chance.randint(3, 12))) for _ in range(10))
        text = (noise, "ok", "good good good good good good good good", "")[number % 4]
        drafts.append(RowDraft(prompt=f"What is item {number}?", completion=text, source="spam"))
    return Contributor(name="spammer", datanet=datanet, kind="spammer", drafts=tuple(drafts))


def contributed_modules() -> tuple[str, ...]:
    return tuple(module for datanet in DATANETS for module in datanet.contributors)


def new_packages() -> tuple[str, ...]:
    return tuple(package for datanet in DATANETS for package in datanet.new)
