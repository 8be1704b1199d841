"""A GPU that isn't there is found out before anything is published, closed or revealed."""

from argparse import Namespace
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from jobs import settle as settle_job
from jobs import train as train_job
from openledger.adapters import base_model
from openledger.core.errors import InvalidInput, Unavailable
from openledger.platform import actors, cluster, pipeline, quickstart, serving
from openledger.platform.point_of_sale import purpose_of
from openledger.platform.quickstart import QuickstartSettings
from openledger.platform.workdir import Workdir
from openledger.training.recipe import Recipe

ASKED = Namespace(
    base_model="", recipe=None, gpu=True, owner="", datanet="greek", commit_nonces=None, parent="", version=0,
    workers=None, bank=0, spread_index_from=0, prices=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    """A cluster of this process's own without any; where an actor is asked for anything, the test fails."""
    for place, name, value in (
        (base_model, "find_base_model", lambda _: SimpleNamespace(name="b", digest="base")),
        (cluster, "connected", lambda _: nullcontext()),
        (serving, "engine_score", lambda _: None),
        *((actors, f"{each}_actor", lambda _: None) for each in ("datanets", "economy", "ledger")),
    ):
        monkeypatch.setattr(place, name, value)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr("ray._private.worker._global_node", SimpleNamespace(is_head=lambda: True))


def test_a_training_is_refused_before_its_version_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "publish", lambda *_: pytest.fail("a version was published"))
    with pytest.raises(Unavailable) as caught:
        train_job.train(Workdir(tmp_path), ASKED)
    assert caught.value.code == "too_few_gpus"


def test_without_a_gpu_the_same_version_may_be_trained_on_the_cpu(tmp_path):
    told = [purpose_of("00", "base", Recipe(num_gpus=gpus).to_dict(), "credit") for gpus in (0, 0.5, 1)]
    assert told[0] == told[1] == told[2]
    assert purpose_of("aa", "base", Recipe(num_gpus=1).to_dict()).recipe_digest == (
        "36419837f3577f12c1939384fd85d67f46abd87dcfe45b2bce7c30a016d80b06"
    )


def test_a_quickstart_is_refused_before_its_first_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "connected", lambda _: nullcontext(SimpleNamespace()))
    monkeypatch.setattr(quickstart, "find_base_model", lambda _: SimpleNamespace(name="b", digest="base"))
    monkeypatch.setattr(quickstart, "start_actors", lambda *_: pytest.fail("stages began"))
    settings = QuickstartSettings(recipe=Recipe(num_gpus=1))
    log = SimpleNamespace(stage=lambda _: nullcontext(SimpleNamespace(tell=lambda _: None)))
    with pytest.raises(Unavailable) as caught, quickstart.demonstration(settings, Workdir(tmp_path), log):
        pass
    assert caught.value.code == "too_few_gpus"


@pytest.mark.parametrize(("num_gpus", "code"), [(2.0, "invalid_gpus"), (-1.0, "invalid_gpus"), (1.0, "no_gpu")])
def test_a_settlement_is_refused_before_its_period_is_closed(tmp_path, num_gpus, code):
    with pytest.raises((InvalidInput, Unavailable)) as caught:  # with None for an economy, it would end otherwise
        settle_job.settle(Workdir(tmp_path), [""], num_gpus=num_gpus)
    assert caught.value.code == code
