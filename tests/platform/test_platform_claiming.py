"""Claims over the real actors: everything that is handed from one to the other survives the way, errors too."""

import asyncio
from typing import Any

import pytest
from economy_values import TERMS, answer, scores
from house import ADA, ADA_ID, AUDITOR, DEPOSIT, NOISE, OWNER, POOL, ROWS

from openledger.core.appealing import sign_decision
from openledger.core.errors import Forbidden, InsufficientFunds
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.seals import seal_of
from openledger.economy.disputes import recomputed
from openledger.ledger.disputes import Basis
from openledger.ledger.signers import Signer, sign_signer
from openledger.platform.claims import Claims

pytestmark = pytest.mark.cluster
NAMESPACE = "openledger-claims-test"


@pytest.fixture
def actors(cluster: Any, tmp_path: Any) -> Any:
    import ray

    from openledger.datanets.actor import start_datanets
    from openledger.economy.actor import start_economy
    from openledger.ledger.actor import start_ledger

    ledger = start_ledger(tmp_path / "ledger.db")
    economy = start_economy(ledger, tmp_path)
    datanets = start_datanets(tmp_path / "datanets", num_shards=1, namespace=NAMESPACE)
    ray.get([datanets.create.remote("docs", "What functions do", "user:owner"), economy.current_period.remote()])
    yield datanets, economy, ledger
    shard = ray.get_actor("openledger-shard-0", namespace=NAMESPACE)
    for actor in (datanets, shard, economy, ledger):
        ray.kill(actor)


def test_seals_appeals_disputes_and_retention_go_through_the_actors(actors: Any) -> None:
    import ray

    datanets, economy, ledger = actors
    claims = Claims(datanets, economy)
    contribution = sign_contribution(ADA, "docs", (*ROWS, NOISE), "0")

    async def claim() -> None:
        seal = await claims.seal(seal_of(ADA, contribution))
        receipt = await datanets.contribute.remote(contribution)
        await claims._log_seals()
        assert (await claims.find_seal("docs", ADA_ID, seal.digest)).contribution_id == receipt.contribution_id

        appeal = appeal_of(ADA, contribution, 3, "a checksum")
        with pytest.raises(InsufficientFunds):
            await claims.appeal(appeal)
        await economy.grant.remote(f"contributor:{ADA_ID}", 2 * DEPOSIT, "deposits")
        assert (await claims.appeal(appeal))["state"] == "open"
        reviewer = Signer(role="reviewer", account="user:owner", public_key=OWNER.public_key, datanet="docs")
        signature = sign_signer(OWNER, "reviewer", "user:owner", "docs")["signature"]
        decision = sign_decision(OWNER, "docs", appeal.row_id, "user:owner", overturned=True)
        with pytest.raises(Forbidden):
            await claims.decide(decision)
        await claims.add_reviewer("user:owner", "docs", reviewer, signature)
        assert (await claims.decide(decision))["state"] == "overturned"

        await economy.grant.remote("user:alice", 10_000, "start")
        authorized = await economy.authorize.remote("user:alice", TERMS, 10, 20, "k")
        await economy.complete.remote(answer(authorized))
        assert (await claims.retention("user:alice"))["num_kept"] == 1
        await economy.settle.remote(scores(scores_nano={ADA_ID: 40}, errors_nano={ADA_ID: 5}), {})
        opened = await claims.open_dispute(f"contributor:{ADA_ID}", *POOL, ADA_ID, 100, "mine")
        scorer = Signer(role="scorer", account="user:auditor", public_key=AUDITOR.public_key)
        await economy.add_signer.remote(scorer, sign_signer(AUDITOR, "scorer", "user:auditor")["signature"])
        more = scores(scores_nano={ADA_ID: 120}, errors_nano={ADA_ID: 5})
        found = recomputed(AUDITOR, "user:auditor", Basis(num_answers=1, answers_nano=155), more)
        assert (await claims.resolve_dispute(opened["dispute_id"], found))["state"] == "upheld"

    asyncio.run(claim())
    report = ray.get(ledger.audit.remote())
    assert (report.num_seals, report.num_appeals, report.num_disputes) == (1, 1, 1)
