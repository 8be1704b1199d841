"""CPU of building a tree of claims, beside OpenZeppelin's own package under node.

    python benchmarks/ledger_claims.py [--claims 100000] [--runs 3]

Both build the whole tree of (address, uint256) leaves from the same values, in a warm process, reading and parsing not
counted; the roots must be equal. CPU is the process's own, user and system. Seed 1.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from openledger.core.money import SUPPLY_NANO
from openledger.ledger.claims import WEI_PER_NANO, ClaimTree

_SCRIPT = """
    const start = process.cpuUsage();
    const tree = StandardMerkleTree.of(input, ['address', 'uint256']);
    const used = process.cpuUsage(start);
    return { root: tree.root, cpu_s: (used.user + used.system) / 1e6 };
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import merkle_tree_package

    folder = merkle_tree_package.install()
    if isinstance(folder, str):
        sys.exit(folder)
    chance = random.Random(1)
    amounts = {"0x" + chance.randbytes(20).hex(): chance.randint(1, SUPPLY_NANO) for _ in range(options.claims)}
    values = [[address, str(amount * WEI_PER_NANO)] for address, amount in amounts.items()]
    ours_s, theirs_s = [], []
    for _ in range(options.runs):
        start = time.process_time()
        root = ClaimTree(amounts).root
        ours_s.append(time.process_time() - start)
        theirs = merkle_tree_package.run(folder, _SCRIPT, values)
        theirs_s.append(theirs["cpu_s"])
        assert theirs["root"] == root
    print(f"{options.claims} claims, {options.runs} runs, best: ours {min(ours_s):.2f} s of CPU,", end=" ")
    ratio = min(theirs_s) / min(ours_s)
    print(f"@openzeppelin/merkle-tree {merkle_tree_package.VERSION} {min(theirs_s):.2f} s: {ratio:.1f} times")


if __name__ == "__main__":
    main()
