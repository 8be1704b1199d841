"""What a seal keeps of its owner's rows where somebody copies them before they are sent: gate, registry and clusters.

    python -m benchmarks.seals               about two minutes on one core

Honest rows are those of `benchmarks.clusters`. Half of the others' rows stand already when the author seals (or
doesn't); he then shows his rows, a copier sends them, edited or not, the other half of the others' rows comes, and at
last the author's own. Counted are rows that an adapter would be trained on: accepted, and no copy of an earlier one.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.clusters import SEED, honest_rows
from benchmarks.redteam_attacks import copied, edited, paraphrased
from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.clusters import ClusterRow
from openledger.datanets.contribution import row_ids, sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.seals import seal_of
from openledger.datanets.shard import ShardHost

AUTHOR, COPIER, DATANET = "torch", "copier", "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-rows", type=int, default=2_000)
    options = parser.parse_args()
    rows = honest_rows(options.max_rows)
    own = [row for row in rows if row.contributor_id == AUTHOR]
    others = [row for row in rows if row.contributor_id != AUTHOR]
    vocabulary = sorted({word for row in others for word in row.completion.split()})
    table = Table("copies", "sealed", "author's trained on", "copies trained on", "others' trained on", box=None)
    for name, copies in attacks_on(own, vocabulary).items():
        for sealed in (False, True):
            found = [f"{part} of {whole}" for part, whole in trained_on(own, others, copies, sealed)]
            table.add_row(name, "yes" if sealed else "no", *found)
    Console(width=120).print(f"{len(own)} rows of the author, {len(others)} of others, seed {SEED}", table)


def attacks_on(own: Sequence[ClusterRow], vocabulary: Sequence[str]) -> dict[str, list[ClusterRow]]:
    taken = copied(own, COPIER)
    shares = {f"{percent} % edited": edited(taken, percent, vocabulary, SEED) for percent in (5, 10, 20, 40)}
    return {"none": [], "verbatim": taken, **shares, "paraphrased": paraphrased(taken)}


def trained_on(
    own: Sequence[ClusterRow], others: Sequence[ClusterRow], copies: Sequence[ClusterRow], sealed: bool
) -> list[tuple[int, int]]:
    """(rows trained on, rows sent) of the author, the copier and the others."""
    mine = signed(AUTHOR, own)
    with tempfile.TemporaryDirectory() as folder:
        datanets = Datanets(Path(folder), [ShardHost(Path(folder) / "shard-0")], ManualClock())
        datanets.create(DATANET, "What functions do", "user:owner")
        early, late = signed("early", others[::2]), signed("late", others[1::2])
        datanets.contribute(early)
        if sealed:
            seal = seal_of(key_of(AUTHOR), mine)
            datanets.seal(seal)
            datanets.mark_seal_logged(seal.contributor_id, seal.digest, opened=False)
        taken = signed(COPIER, copies) if copies else None
        for contribution in (taken, late, mine):
            if contribution is not None:
                datanets.contribute(contribution)
        datanets.publish(DATANET)
        kept = {row.row_id for row in datanets.rows(DATANET, 1)} - datanets.copies(DATANET, 1).keys()
        datanets.close()
    sent = [[mine], [taken] if taken else [], [early, late]]
    groups = [[row_id for one in group for row_id in row_ids(one)] for group in sent]
    return [(len(kept.intersection(group)), len(group)) for group in groups]


def signed(name: str, rows: Sequence[ClusterRow]) -> Contribution:
    drafts = [RowDraft(prompt=row.prompt, completion=row.completion, source=row.row_id) for row in rows]
    return sign_contribution(key_of(name), DATANET, drafts, "1")


def key_of(name: str) -> SigningKey:
    return SigningKey(name.encode().ljust(32, b"\0"))


if __name__ == "__main__":
    main()
