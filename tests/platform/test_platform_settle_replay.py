"""jobs/settle.py --replay-share as the documentation runs it: killed in its replay, and run again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sold_adapters import ALICE, Sold, put_on_sale, sell
from tiny_model import make_tiny_base
from trained_world import OWNER, RECIPE

from openledger.adapters.registry import AdapterRegistry
from openledger.core.signing import SigningKey
from openledger.core.values import RowDraft
from openledger.economy.actor import RemoteLedger
from openledger.ledger import encode_proof, verify_proof
from openledger.openlora.deployment import ScalingOptions, build_openlora
from openledger.platform import pipeline
from openledger.platform.actors import datanets_actor, economy_actor, ledger_actor
from openledger.platform.credit import checked_credit
from openledger.platform.replaying import open_rows
from openledger.platform.serving import APPLICATION, ENGINE
from openledger.platform.workdir import Workdir

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
WORDS = (
    "archive", "header", "window", "stream", "folder", "number", "column", "packet", "thread", "signal", "filter",
    "mirror", "branch", "socket", "record", "buffer", "opens", "closes", "reads", "counts", "after", "before", "every",
)  # fmt: skip
PEOPLE = ("ada", "bob", "eve", "dan")
EPOCHS = 12  # a replay of so many steps lasts some hundred times as long as it takes to see its first checkpoint


@dataclass(frozen=True)
class House:
    workdir: Workdir
    address: str
    economy: Any
    ledger: Any
    sold: Sold

    def settle(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "jobs" / "settle.py"), "--workdir", str(self.workdir.root)]
        command += ["--base-model", self.sold.base.path, "--replay-share", "1", "--training-cost", "0.000000001"]
        environment = {**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    def checkpoints(self) -> list[Path]:
        return sorted((self.workdir.rows / ".unfinished").glob("*/segment-*.safetensors"))


def drafts_of(person: str) -> list[RowDraft]:
    drawn = random.Random(person)
    return [
        RowDraft(
            prompt=f"What does {drawn.choice(WORDS)} {person} {number} do?",
            completion=" ".join(drawn.sample(WORDS, 9)).capitalize() + ".",
            source=f"{person}.{number}",
        )
        for number in range(7)
    ]


@pytest.fixture(scope="module")
def house(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    import ray
    from ray import serve

    class Ingress:
        """What holds the engine as an application. In here, as replicas can't import a test."""

        def __init__(self, *engines: Any):
            self.engines = engines

    root = tmp_path_factory.mktemp("house")
    workdir, base = Workdir(root / "workdir"), make_tiny_base(root / "base", WORDS)
    registry, economy, datanets = AdapterRegistry(workdir.adapters), economy_actor(workdir), datanets_actor(workdir)
    ledger = ledger_actor(workdir)
    ray.get([economy.grant.remote(ALICE, 10**12, "start"), datanets.create.remote("words", "What words do", OWNER)])
    for person in PEOPLE:
        key = SigningKey(person.encode().ljust(32, b"."))
        ray.get(datanets.register_contributor.remote(key.public_key, person))
        receipt = pipeline.contribute(datanets, key, "words", drafts_of(person))
        assert {verdict.outcome for verdict in receipt.verdicts} == {"accept"}
    version, rows = pipeline.publish(datanets, "words", OWNER)
    credit = checked_credit(datanets, version, rows, RemoteLedger(ledger))
    sold = put_on_sale(workdir, registry, base, version, rows, recipe=replace(RECIPE, num_epochs=EPOCHS), credit=credit)
    sell(economy, sold, "sale", sold.job.rows[::4])
    scaling = ScalingOptions(num_cpus=0.5, drain_s=2)
    engine = build_openlora(base.path, str(workdir.adapters), scaling=scaling, name=ENGINE)
    serve.start(proxy_location="Disabled")
    ingress = serve.deployment(Ingress).options(ray_actor_options={"num_cpus": 0})
    serve.run(ingress.bind(engine), name=APPLICATION, route_prefix=None)
    yield House(workdir, cluster.address_info["address"], economy, ledger, sold)
    serve.delete(APPLICATION)
    for actor in (economy, ledger, datanets):
        ray.kill(actor)


def kill_in_its_replay(house: House) -> None:
    job = house.settle()
    while not house.checkpoints():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.002)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()


def test_a_settlement_killed_in_its_replay_pays_once_and_its_rows_sum_to_what_is_paid_for(house: House) -> None:
    import ray

    kill_in_its_replay(house)
    (waiting,) = [pool for pool in ray.get(house.economy.pools.remote()) if pool[0] == "words"]
    assert house.checkpoints()  # it died in its replay, and paid nobody
    pool = ray.get(house.economy.pool.remote(*waiting))
    orphan = house.workdir.rows / ".unfinished" / f"words-p0000-{'a' * 24}-{'b' * 16}"
    orphan.mkdir()

    again = house.settle()
    output, complaint = again.communicate()
    assert again.returncode == 0, complaint
    (told,) = map(json.loads, output.splitlines())
    assert (told["adapter"], told["period"], told["quality"]["replay"]) == (*waiting, "exact")
    assert sum(told["payouts_nano"].values()) == told["pool_nano"] == pool.total_nano
    assert list((house.workdir.rows / ".unfinished").iterdir()) == []

    paid = [name for name, nano in told["payouts_nano"].items() if name.startswith("ctr_") and nano]
    assert paid
    entries = ray.get(house.ledger.transfers.remote(f"contributor:{paid[0]}"))
    proof = encode_proof(ray.get(house.ledger.proof.remote(entries[0].transfer.transfer_id)))
    statement = verify_proof(proof, ray.get(house.ledger.verification_key.remote())).statement
    quality = statement["parts"]["use"]["quality"]
    (document,) = open_rows(house.workdir.rows, *waiting, quality).values()
    rows = list(document.rows())
    assert sorted(row["row_id"] for row in rows) == sorted(row.row_id for row in house.sold.job.rows)
    for part in ("use", "improvement"):
        sums = Counter[str]()
        for row in rows:
            sums[row["contributor_id"]] += row[part]["expected_nano"]
        scores = statement["parts"][part]["scores_nano"]
        assert dict(sums) == {name: pytest.approx(nano, abs=len(rows)) for name, nano in scores.items()}
    assert ray.get(house.economy.pools.remote()) == []
    assert ray.get(house.ledger.audit.remote()).num_settlements == 1
