"""How many honest rows go unpaid for being alike to earlier ones, as Datanets grow, and whether strangers raise that.

    python -m benchmarks.repeats FOLDER          resumable; two seeds, some minutes of one core; needs scikit-learn

Images of the digits task with their true labels, drawn at random among contributors of equal sizes, or of sizes as 1,
1/2, 1/3, ...; nobody copies. Counted are rows that `attribution.likeness` names: by likeness/1, of their contributor's
own, and by likeness/2 and /3, of anybody's, in an order of contribution drawn at random.

`names`: as many accounts more as said, each with as many images of noise, before all others: theta is a median over
contributors, so accounts that are alike to nobody might lower it for those who are. A row of theirs teaches nothing;
what they want is that others go unpaid. "Repetitions" come after all others, of thirty of their rows with a little
noise: accounts that are alike might raise theta, so that they are paid. Prints a table.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import digits_task
from benchmarks.digits_task import Digit
from benchmarks.redteam_attacks import many_repeated, noise_images
from openledger.attribution.likeness import Repeat, find_repeats
from openledger.core.files import write_json_durably
from openledger.training.recipe import generator

SEEDS, ORIGINALS = 2, 30
RULES = ("likeness/1", "likeness/2", "likeness/3")


@dataclass(frozen=True, slots=True)
class World:
    num_rows: int
    num_contributors: int
    even: bool = True
    names: int = 0
    rows_each: int = 1
    repeating: bool = False

    def rows(self, seed: int) -> list[Digit]:
        """In the order of contribution."""
        from sklearn.datasets import load_digits

        data, draw = load_digits(), generator(f"repeats-{seed}", "rows")
        parts = np.ones(self.num_contributors) if self.even else 1 / np.arange(1, self.num_contributors + 1)
        whose = draw.choice(self.num_contributors, self.num_rows, p=parts / parts.sum())
        noise = [
            Digit(f"n{n:04}", f"n{n % self.names:04}", row.pixels, row.label) for n, row in enumerate(self.noise(seed))
        ]
        honest = [
            Digit(f"r{at:04}", f"c{who:02}", tuple((data.data[at] / 16).tolist()), int(data.target[at]))
            for at, who in zip(draw.permutation(len(data.target))[: self.num_rows].tolist(), whose, strict=True)
        ]
        again = many_repeated(honest[:ORIGINALS], "x", self.names, self.rows_each) if self.repeating else []
        return [*noise, *honest, *again]

    def noise(self, seed: int) -> Sequence[Digit]:
        return () if self.repeating or not self.names else noise_images("n", self.names * self.rows_each, seed)


WORLDS = (
    *(World(number, by, by == 8) for number in (240, 480, 1797) for by in (8, 12)),
    *(World(1797, by) for by in (2, 50, 200)),
    *(World(1797, 8, names=names) for names in (8, 30, 100)),
    *(World(1797, 8, names=names, rows_each=each) for names, each in ((60, 10), (20, 30))),
    *(
        World(number, by, names=names, rows_each=each, repeating=True)
        for number, by in ((240, 8), (240, 24), (1797, 8), (1797, 200))
        for names, each in ((8, 10), (16, 20))
    ),
    *(
        World(1000, 2, names=names, rows_each=each, repeating=True)
        for names, each in ((1, 24), (1, 25), (3, 8), (24, 1))
    ),
)


def counted(world: World, seed: int) -> dict[str, list[float]]:
    """For each rule, how many honest rows go unpaid, the part of his rows of whoever loses most, and the part of the
    accounts' rows that goes unpaid."""
    rows = world.rows(seed)
    constant = f"repeats-{seed}"
    credit = {row.row_id: n for n, row in enumerate(rows)}
    found = find_repeats(digits_task.make_module(constant), rows, digits_task.TASK, credit=credit, salt=constant)
    whose = {row.row_id: row.contributor_id for row in rows}
    sizes = Counter(whose.values())

    def lost(repeats: Sequence[Repeat]) -> list[float]:
        names = Counter(whose[each.row_id] for each in repeats if whose[each.row_id].startswith("c"))
        worst = max((number / sizes[name] for name, number in names.items()), default=0.0)
        added = world.names * world.rows_each
        return [names.total(), worst, (len(repeats) - names.total()) / added if added else 0.0]

    assert found.anybodys is not None
    assert found.anybodys_2 is not None
    return {"likeness/1": lost(found.own), "likeness/2": lost(found.anybodys_2), "likeness/3": lost(found.anybodys)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    heads = ["rows", "by", "sizes", "names", *(head for rule in RULES for head in (rule, "worst off", "of the names'"))]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for world in WORLDS:
        told = [_kept(folder, world, seed) for seed in range(SEEDS)]
        cells = [str(world.num_rows), str(world.num_contributors), "even" if world.even else "uneven"]
        kind = " repetitions" if world.repeating else ""
        cells += [f"{world.names} of {world.rows_each}{kind}" if world.names else "0"]
        for rule in RULES:
            cells += [", ".join(f"{one[rule][0]:.0f}" for one in told)]
            cells += [f"{100 * max(one[rule][1] for one in told):.1f} %"]
            cells += [", ".join(f"{100 * one[rule][2]:.0f} %" for one in told) if world.names else ""]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def _kept(folder: Path, world: World, seed: int) -> dict[str, list[float]]:
    sizes, kind = "even" if world.even else "uneven", "repeating" if world.repeating else "noise"
    path = (
        folder / f"{world.num_rows}-{world.num_contributors}-{sizes}-{world.names}-{world.rows_each}-{kind}-{seed}.json"
    )
    if not path.exists():
        write_json_durably(path, counted(world, seed))
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    raise SystemExit(main())
