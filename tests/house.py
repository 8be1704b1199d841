"""A Service whose claims (seals, appeals, disputes, retention) are answered by a real economy, ledger and Datanets in
this process; all else is `MemoryService`'s."""

from pathlib import Path
from typing import Any

from economy_values import TERMS, answer, scores
from memory_service import MemoryService

from openledger.core.clock import ManualClock
from openledger.core.errors import Unauthenticated, Unavailable
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import Contribution, ContributionReceipt, RowDraft, Verdict
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.shard import ShardHost
from openledger.datanets.terms import Terms
from openledger.economy import Economy, Parameters
from openledger.ledger import Ledger
from openledger.ledger.signers import Signer, sign_signer
from openledger.platform.claims import Claims
from openledger.platform.community import Community
from openledger.platform.owners import Owners

ADA, BOB, OWNER, AUDITOR = (SigningKey(name * 32) for name in (b"a", b"b", b"o", b"s"))
ADA_ID = contributor_id(ADA.public_key)
DEPOSIT = Parameters().dispute_deposit_nano
POOL = ("py", "p0001")
ROWS = tuple(
    RowDraft(
        prompt=f"What does {name}.{name} do?",
        completion=f"It joins {name} with every {name} that {more} found.",
        source="pack",
    )
    for name, more in (("alpha", "reading"), ("gamma", "sorting"), ("delta", "parsing"))
)
NOISE = RowDraft(prompt="What does pack.crc do?", completion="Xqzv wvkx zzqj kqvx jxqz wqkz vxjq.", source="pack")


class Remote:
    """An object as Ray hands it out. The next call of a method in `lost` is made, and its answer is lost."""

    def __init__(self, target: Any):
        self._target, self.lost = target, set[str]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        class Call:
            @staticmethod
            async def remote(*arguments: Any, **more: Any) -> Any:
                result = method(*arguments, **more)
                if name in self.lost:
                    self.lost.discard(name)
                    raise Unavailable("no answer", code="actor_unavailable")
                return result

        return Call


class House(Community, Owners, MemoryService):
    """An API key is `olk_` and its account."""

    def __init__(self, folder: Path, parameters: Parameters | None = None):
        self.clock = ManualClock()
        self.ledger = Ledger(folder / "ledger.db", self.clock, SigningKey(b"k" * 32), "openledger/test")
        self.economy = Economy(self.ledger, folder, self.clock, parameters)
        self.rows = Datanets(folder, [ShardHost(folder / "shard-0")], self.clock)
        self.rows.create("docs", "What functions do", "user:owner")
        MemoryService.__init__(self)
        Claims.__init__(self, Remote(self.rows), Remote(self.economy))

    async def authenticate(self, api_key: str) -> str:
        if not api_key.startswith("olk_"):
            raise Unauthenticated("this API key is not known", code="invalid_api_key", param="Authorization")
        return api_key.removeprefix("olk_")

    async def datanet(self, name: str) -> dict[str, Any]:
        found = self.rows.datanet(name)
        return {"name": name, "owner": found.owner, "row_schema": found.row_schema.to_json()}

    def adapters_of(self, datanet: str) -> list[str]:
        return ["py"]

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        receipt: ContributionReceipt = await self._datanets.contribute.remote(contribution)
        await self._log_seals()
        return receipt

    async def contribution(self, name: str, identifier: str, reader: str = "") -> ContributionReceipt:
        receipt: ContributionReceipt = await self._datanets.receipt.remote(name, identifier, reader)
        return receipt

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        verdicts: tuple[Verdict, ...] = await self._datanets.preview.remote(contribution)
        return verdicts

    def judged(self, *, funded: bool = True) -> Contribution:
        """Ada's contribution, whose row 3 the gate took for noise; her account has an appeal's deposit."""
        contribution = sign_contribution(ADA, "docs", (*ROWS, NOISE), "0")
        self.rows.contribute(contribution)
        if funded:
            self.economy.grant(f"contributor:{ADA_ID}", DEPOSIT, "deposit")
        return contribution

    def kept_private(self) -> str:
        """Bob's, the first of ROWS, in a Datanet on which nobody but `user:vault` may train; the row's id."""
        self.rows.create("vault", "What is Bob's", "user:vault")
        self.rows.set_terms("vault", Terms(train="private"), "user:vault")
        return self.rows.contribute(sign_contribution(BOB, "vault", ROWS[:1], "0")).verdicts[0].row_id

    def name_reviewer(self, key: SigningKey = OWNER, account: str = "user:owner") -> None:
        signer = Signer(role="reviewer", account=account, public_key=key.public_key, datanet="docs")
        self.economy.add_signer(signer, sign_signer(key, "reviewer", account, "docs")["signature"])

    def name_scorer(self) -> None:
        signer = Signer(role="scorer", account="user:auditor", public_key=AUDITOR.public_key)
        self.economy.add_signer(signer, sign_signer(AUDITOR, "scorer", "user:auditor")["signature"])

    def sold(self) -> None:
        """Alice has bought one answer: 155 nano-OPEN are in the pool."""
        self.economy.grant("user:alice", 10_000, "start")
        self.economy.complete(answer(self.economy.authorize("user:alice", TERMS, 10, 20, "k")))

    def settled(self) -> None:
        """The pool is paid, 20 nano-OPEN of it to Ada, who has a dispute's deposit."""
        self.sold()
        self.economy.settle(scores(scores_nano={"ctr_a": 120, ADA_ID: 40}, errors_nano={"ctr_a": 15, ADA_ID: 5}), {})
        self.economy.grant(f"contributor:{ADA_ID}", DEPOSIT, "deposit of a dispute")

    def logged_seals(self) -> list[str]:
        """Formats of what the log says of seals, in its order."""
        known = "holds:seals" in {balance.account_id for balance in self.ledger.balances()}
        entries = self.ledger.transfers("holds:seals") if known else []
        return [(self.ledger.batch(seq).statement or {})["format"] for seq in sorted({entry.seq for entry in entries})]

    def end(self) -> None:
        self.rows.close()
        self.economy.close()
        self.ledger.close()
