"""Contributes the same rows, contribution after contribution, every second one sealed before, and says on stdout which
ones were answered.

    python contributing_process.py FOLDER NUM_CONTRIBUTIONS [KILL_BEFORE_FSYNC]

With a third argument the process kills itself (SIGKILL) before that many-th `fsync` of contributing.
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from datanet_samples import key_of, open_datanets, sample_drafts, signed

from openledger.core.values import Contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.seals import seal_of


def contribution(number: int) -> Contribution:
    """Twelve new rows and the two first of the contribution before."""
    drafts = [*sample_drafts(12, f"part{number}"), *sample_drafts(2, f"part{max(0, number - 1)}")]
    return signed("ada", drafts, nonce=str(number))


def seal(datanets: Datanets, number: int) -> None:
    """Keep the contribution's place first, as if the log had it."""
    own = seal_of(key_of("ada"), contribution(number))
    datanets.seal(own)
    datanets.mark_seal_logged(own.contributor_id, own.digest, opened=False)


def main() -> None:
    folder, num_contributions = Path(sys.argv[1]), int(sys.argv[2])
    datanets = open_datanets(folder)
    if len(sys.argv) > 3:
        _kill_before_fsync(int(sys.argv[3]))
    print("ready", flush=True)
    for number in range(num_contributions):
        if number % 2:
            seal(datanets, number)
        receipt = datanets.contribute(contribution(number))
        print(json.dumps([number, asdict(receipt)]), flush=True)


def _kill_before_fsync(kill_at: int) -> None:
    fsync, calls = os.fsync, iter(range(1, kill_at + 1))

    def counted(descriptor: int) -> None:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted  # type: ignore[assignment]


if __name__ == "__main__":
    main()
