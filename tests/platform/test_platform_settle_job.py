"""jobs/settle.py beside real actors, engines and index hosts: a name that went over to another base model is paid once,
and a second scorer comes to the same shares."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sold_adapters import ALICE, Sold, put_on_sale, sell
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import BaseModel
from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.index import GradientIndex
from openledger.attribution.likeness import load_repeats
from openledger.attribution.parts import mean_improvement, summed
from openledger.attribution.period import Measurement
from openledger.attribution.recompute import recompute
from openledger.attribution.views import load_views
from openledger.core.errors import InvalidInput
from openledger.core.shares import shares_ppb
from openledger.core.values import DatanetVersion, Pool
from openledger.openlora.deployment import ScalingOptions, build_openlora
from openledger.openlora.torch_engine import TorchEngine
from openledger.platform.actors import economy_actor, ledger_actor
from openledger.platform.generations import built_views
from openledger.platform.serving import APPLICATION, ENGINE
from openledger.platform.workdir import Workdir
from openledger.training.record import load_held_out

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class House:
    workdir: Workdir
    address: str
    economy: Any
    sold: list[Sold]

    def settle(self, *bases: BaseModel) -> subprocess.CompletedProcess[str]:
        first, *further = (base.path for base in bases)
        named = ["--base-model", first, *(word for path in further for word in ("--further-base", path))]
        command = [sys.executable, str(ROOT / "jobs" / "settle.py"), "--workdir", str(self.workdir.root), *named]
        environment = {**os.environ, "RAY_ADDRESS": self.address, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def house(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    import ray
    from ray import serve

    class Ingress:
        """What holds the engines together as one application. In here, as replicas can't import a test."""

        def __init__(self, *engines: Any):
            self.engines = engines

    root = tmp_path_factory.mktemp("house")
    workdir = Workdir(root / "workdir")
    bases = [make_tiny_base(root / "one"), make_tiny_base(root / "other", ("rosa", "aqua", "terra", "luna"))]
    registry = AdapterRegistry(workdir.adapters)
    economy = economy_actor(workdir)
    ray.get(economy.grant.remote(ALICE, 10**12, "start"))
    sold = []
    for number, base in enumerate(bases, 1):
        sold.append(put_on_sale(workdir, registry, base, _version(number), tiny_rows("greek")))
        sell(economy, sold[-1], f"sale-{number}", sold[-1].job.rows[::9])
    ray.get(economy.open_period.remote())
    scaling = ScalingOptions(num_cpus=0.5, drain_s=2)
    engines = [
        build_openlora(base.path, str(workdir.adapters), scaling=scaling, name=f"{ENGINE}{suffix}")
        for base, suffix in zip(bases, ("", "-other"), strict=True)
    ]
    serve.start(proxy_location="Disabled")
    ingress = serve.deployment(Ingress).options(ray_actor_options={"num_cpus": 0})
    serve.run(ingress.bind(*engines), name=APPLICATION, route_prefix=None)
    yield House(workdir, cluster.address_info["address"], economy, sold)
    serve.delete(APPLICATION)
    for actor in (economy, ledger_actor(workdir)):
        ray.kill(actor)


def _version(number: int) -> DatanetVersion:
    return DatanetVersion(
        datanet="greek", number=number, row_root="ab" * 32, num_rows=48, gate_version="g/1", published_ms=1
    )


def _recomputed(sold: Sold, pool: Pool) -> Measurement:
    """What a second scorer makes of one adapter's answers, from what lies on disk."""
    answers = [answer for answer in pool.answers if answer.adapter_digest == sold.digest]
    module, views = load_views(sold.base, built_views(sold.job.output, sold.index))
    engine = TorchEngine(sold.base)
    engine.load(sold.digest, Path(sold.job.output))
    index = GradientIndex.open(sold.index, sold.digest, base_digest=sold.base.digest)
    return recompute(
        "greek", pool.period, answers, load_held_out(Path(sold.job.output)), module, index, engine, sold.bank,
        views=views, repeats=load_repeats(sold.index).own,
    )  # fmt: skip


def _kill_engine(sold: Sold, killed: list[int]) -> None:
    """The first base's replica, once the settlement has brought the bank's members to where an engine finds them."""
    from ray import serve

    handle = serve.get_deployment_handle(ENGINE, app_name=APPLICATION)
    pid = handle.describe.remote().result()["pid"]
    written = Path(sold.job.output) / "bank" / "served"
    deadline_s = time.monotonic() + 400
    while time.monotonic() < deadline_s:
        if len(list(written.glob("*/adapter_model.safetensors"))) == 8:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return
        time.sleep(0.01)


def test_a_name_of_two_bases_is_paid_once_as_a_second_scorer_finds_it(house: House) -> None:
    import ray

    (waiting,) = ray.get(house.economy.pools.remote())
    pool = ray.get(house.economy.pool.remote(*waiting))
    killed: list[int] = []
    killer = threading.Thread(target=_kill_engine, args=(house.sold[0], killed))
    killer.start()
    settled = house.settle(*(sold.base for sold in house.sold))
    killer.join()
    assert (settled.returncode, len(killed)) == (0, 1), settled.stderr
    (told,) = map(json.loads, settled.stdout.splitlines())
    for place in (0, 1):
        assert told["quality"][f"{place}.scored_by"] == told["quality"][f"{place}.gains_by"] == "openlora float32"
    assert (told["adapter"], told["period"]) == waiting
    assert sum(told["payouts_nano"].values()) == told["pool_nano"] == pool.total_nano
    assert max(told["parts"]["use"]["payouts_nano"].values()) > 0
    assert ray.get(house.economy.pools.remote()) == []

    parts = sorted(house.sold, key=lambda sold: sold.digest)
    measured = [_recomputed(sold, pool) for sold in parts]
    use = summed([each.use() for each in measured])
    improvement = mean_improvement([(each.improvement(), sum(each.fees_nano)) for each in measured])
    assert improvement is not None
    z_milli = ray.get(house.economy.parameters.remote()).z_milli
    for name, scores in (("use", use), ("improvement", improvement)):
        shares = shares_ppb(
            scores.scores_nano, scores.errors_nano, scores.gain_nano, z_milli, ceilings=scores.ceilings,
            unpaid_nano=scores.unpaid_nano,
        )  # fmt: skip
        paid = told["parts"][name]
        for who, share_ppb in shares.items():
            part = paid["payouts_nano"].get(who, 0) / paid["pool_nano"]
            assert part == pytest.approx(share_ppb / 10**9, abs=2e-3)


def test_a_second_scorer_is_refused_the_index_of_another_base(house: House) -> None:
    first, second = house.sold
    with pytest.raises(InvalidInput) as caught:
        GradientIndex.open(first.index, first.digest, base_digest=second.base.digest)
    assert caught.value.code == "wrong_index"
