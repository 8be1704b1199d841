"""Datanets: the way of a contribution from its signature to its receipt, and from accepted rows to a version.

Owns the order of these steps, and so that nothing acknowledged is lost and nothing is stored twice. Knows neither Ray
nor where a shard runs: shards come in as ports. One process at a time holds a folder (see `registry`). What needs no
row, such as who may contribute, is in `agreements`.

A contribution is stored in three steps, each durable before the next:

1. the verdicts are fixed in the registry, together with the drafts;
2. accepted and reviewed rows are appended to their shards, under the contribution's id as key;
3. the registry forgets the drafts, and the receipt is returned.

A crash before 1 leaves nothing. After 1, the next opening (or a retry) repeats 2 and 3 with the same verdicts. One
thread takes 1 and 3 and everything else; others may take 2, so that the shards have many contributions at once.
Whatever needs the rows of all that was judged takes 2 and 3 of it first.

Rows that were sealed before are judged and credited as of their seal (`seals`); step 1 opens it.

Rows are taken back in three steps of the same kind: tombstones in the registry, the shards forget, the registry knows.

Where a shard's files are damaged, that Datanet alone is closed: it takes no rows and gives none, and what was begun of
it waits for the next opening. New rows of others are judged against what can be read of it. Which of them repeat rows
that can't be read is found before training (`copies`), which waits for them. No row moves to another shard meanwhile,
and no word is dropped from the table of words.
"""

import contextlib
import json
import logging
import secrets
import threading
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from openledger.core.appealing import Appeal, AppealState, Judged
from openledger.core.clock import Clock
from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, NotFound
from openledger.core.files import write_json_durably
from openledger.core.rekeying import KeyChange
from openledger.core.values import (
    Contribution,
    ContributionReceipt,
    DatanetVersion,
    Outcome,
    Removal,
    Row,
    RowDraft,
    Tombstone,
    Verdict,
    Withdrawal,
)
from openledger.datanets.agreements import Agreements
from openledger.datanets.appeals import HeldRow
from openledger.datanets.bulk import Part
from openledger.datanets.clusters import ClusterRow, EvidenceClusters, WordWeights, row_words
from openledger.datanets.contribution import check_signature, draft_bytes, row_ids
from openledger.datanets.dedupe import DuplicateIndex, Features, Index, Overlay, features_of
from openledger.datanets.disclosure import ANYBODY, Disclosure
from openledger.datanets.divided import DividedIndex, emptied
from openledger.datanets.export import write_export, write_leaves
from openledger.datanets.feedback import Feedback
from openledger.datanets.gate import GATE_VERSION, NO_DETECTORS, Detectors, Rules, decide, examine, rare_collections
from openledger.datanets.keyed import KEY_BYTES, FeatureKey
from openledger.datanets.layout import Layout, ShardPort
from openledger.datanets.leaderboard import Leaderboard, LeaderboardPage
from openledger.datanets.licences import WITHDRAWN, check_kept, keeps, not_kept, row_keeps
from openledger.datanets.panels import PanelSeat
from openledger.datanets.preparing import Announced, Prepared, announced
from openledger.datanets.quotas import DAY_MS, HOUR_MS, check_day, check_hour
from openledger.datanets.registry import (
    DEFAULT_DISPLAY,
    ContributorStatistics,
    CreditedRow,
    Datanet,
    Display,
    PendingContribution,
    Registry,
)
from openledger.datanets.removal import check_withdrawal, removed, tombstone, withdrawn
from openledger.datanets.reviews import ReviewerRecord, ReviewOutcome
from openledger.datanets.row_schema import RowSchema, own_licence
from openledger.datanets.seals import Opening, Place, digest_of
from openledger.datanets.terms import Terms, changed_terms, check_not_withdrawn
from openledger.datanets.versions import (
    Manifest,
    ManifestRow,
    Manifests,
    Stated,
    credit_root,
    read_credit,
    read_manifest,
    read_row_ids,
    read_stated,
    row_root,
    write_manifest,
)

_INDEXED_AT_ONCE = 10_000
_MANIFEST_BYTES = 64 * 1024 * 1024  # of those in memory, for who reads one page by page
_WORD_WEIGHTS = "word_weights.json"
_BY_SHARD, _FEATURE_KEY = "duplicates_by_shard", "feature_key"  # among the registry's properties
_WORDS_DUE = "words_to_forget"  # too: "1" while words of rows that were taken back may be left in the table
_STORED: tuple[Outcome, ...] = ("accept", "review")
_log = logging.getLogger(__name__)


class Datanets(Agreements):
    """Opening finishes what a crash cut off, checks that every credited row is stored, and builds the duplicate index.
    A Datanet with missing rows or damaged files raises Corrupt naming the shard when it is asked for; `damages` tells.

    `num_shards` of `shards` hold the rows, all of them without it. With more than before, or fewer, the rows that live
    elsewhere now are moved: before this returns, or by `move_rows` while reads and writes go on (`moves_later`).
    `duplicates_by_shard` is as `divide_duplicates` has it, before an index is built where there is no memory for it.
    Raises Corrupt for a damaged registry, Conflict for fewer shards than rows lie in.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[ShardPort],
        clock: Clock,
        detectors: Detectors = NO_DETECTORS,
        num_shards: int | None = None,
        *,
        moves_later: bool = False,
        duplicates_by_shard: bool | None = None,
    ):
        super().__init__(Registry(folder / "registry.sqlite"), clock)
        self._folder = folder
        self._detectors = detectors
        self._disclosure = Disclosure(self._registry)
        self._shards = tuple(shards)
        self._layout = Layout(shards, self._registry)
        self._index: Index = DuplicateIndex()  # of nothing, while what was cut off is finished
        self._manifests = Manifests(_MANIFEST_BYTES)
        self._forgotten = self._registry.tombstones.row_ids()  # by the shards, or about to be
        names = self._registry.names()
        pending = self._registry.pending_ids(names)
        self._unfinished = {one: threading.Lock() for one in pending}  # each held by the thread that stores it
        self._damages: dict[str, Corrupt] = {}
        self._are_rows_checked = False
        for name in names:
            with self._noting(name):
                self._finish_pending(name)
        for removal in self._registry.tombstones.pending():
            with self._noting(removal.datanet):
                self._forget(removal)
        self._forget_rejected()
        for name in names:
            self._check_rows(name)
        self._are_rows_checked = True
        if not self._damages:  # or an append may be half done, and rows that are put back later would not be moved
            self._layout.begin_move(len(shards) if num_shards is None else num_shards)
        with contextlib.suppress(Corrupt):  # it is the layout's `problem`
            while not moves_later and self.move_rows():
                pass
        if duplicates_by_shard is not None:
            self._registry.set_property(_BY_SHARD, str(int(duplicates_by_shard)))
        is_divided = self._registry.find_property(_BY_SHARD) == "1"
        if not is_divided:  # a process before may not have come to it
            emptied(self._shards, self._registry.epoch)
        self._index = self._built_index(by_shard=is_divided)
        if self._registry.find_property(_WORDS_DUE) == "1":
            self._forget_words()

    def close(self) -> None:
        if isinstance(self._index, DividedIndex):
            self._index.close()
        self._registry.close()

    def divide_duplicates(self, *, by_shard: bool) -> None:
        """From now on, also after a restart, have the duplicate index with the shards (`divided`), or in this process.
        It is made anew where that is another place than before. Raises Unavailable where a shard is away; then it
        stays where it was."""
        before = self._index
        if by_shard and isinstance(before, DividedIndex):
            return
        if by_shard or isinstance(before, DividedIndex):
            self._index = self._moved_index(by_shard=by_shard)
        if isinstance(before, DividedIndex):
            before.close()
        if not by_shard:  # also when it is asked for again: a shard may have been away
            emptied(self._shards, self._registry.epoch)

    def move_rows(self) -> bool:
        """Move some of the rows whose shard has changed. Whether more may be left; nothing else has to wait for it.
        While a Datanet is damaged none is moved."""
        return not self._damages and self._layout.move_some()

    def move_state(self) -> dict[str, bool | str]:
        """Whether rows move between shards, and the code of the `problem` that stopped the last step, or that stops
        all."""
        stopped = [damage.code for damage in self._damages.values()] if self._layout.is_moving else []
        return {"is_moving": self._layout.is_moving, "problem": self._layout.problem or next(iter(stopped), "")}

    def damages(self) -> dict[str, Corrupt]:
        """Datanets whose rows can't all be read, each with what it raises when it is asked for, until it is restored
        and opened again."""
        return dict(self._damages)

    def open_datanet(
        self,
        name: str,
        summary: str,
        owner: str,
        row_schema: RowSchema,
        terms: Terms,
        display: Display = DEFAULT_DISPLAY,
    ) -> Datanet:
        """`create`, with its first terms, for an account that asks for it. Raises as `check_new`."""
        self.check_new(name, summary, owner, row_schema)
        self.create(name, summary, owner, row_schema, display)
        if not self._registry.terms.are_set(name):
            self.set_terms(name, terms, owner)
        self._reservations.release(name, owner)
        return self.datanet(name)

    def set_terms(self, name: str, terms: Terms, by: str) -> Terms:
        """What `name` is open on, from now on; rows that stand already stay, and so does what their licence asks.

        Raises Forbidden (`not_the_owner`), Conflict (`licence_not_kept`)."""
        self._check_owner(name, by)
        self._check_licences_kept(name, terms.licence, by)
        self._registry.terms.set_terms(name, terms)
        return terms

    def change_terms(self, name: str, changes: Mapping[str, Any], by: str) -> Terms:
        """`set_terms` of the terms as they are now, with `changes`. Raises InvalidInput (`invalid_terms`) as well."""
        return self.set_terms(name, changed_terms(self.terms(name), changes), by)

    def bulk_parts(self, name: str, number: int, party: str) -> list[Part]:
        """Where the rows of `rows` stand in storage, for readers beside this process (`bulk`), for `party` to train on.
        Raises as `check_training`."""
        self.check_training(name, party)
        return self._layout.parts(name, self._standing_ids(name, number))

    def export_parts(self, name: str, number: int, party: str) -> list[Part]:
        """As `bulk_parts`, for `party` to hand them on as they are. Raises as `check_export`."""
        self.check_export(name, party)
        return self._layout.parts(name, self._standing_ids(name, number))

    def hold_keys(self, change: KeyChange, decides: bool = False) -> None:
        """Let the key that it replaces sign no more; it is to be put into the log, and then adopted, or dropped. What
        that key took back is gone before, or an outage would put it into the log behind the change. Who `decides` as a
        reviewer or scorer is no stranger.

        Raises what `HolderStore.hold` does, Unavailable when storage is.
        """
        for removal in self._registry.tombstones.pending():
            if removal.by == change.contributor_id:
                self._forget(removal)
        self._registry.holders.hold(change, self.has_signed, self._clock.now_ms(), decides)

    def contribute(self, contribution: Contribution, prepared: Prepared | None = None) -> ContributionReceipt:
        """Check, judge and store. The same contribution again gets its first receipt again. A contributor who is not
        registered is, by the id that his key gives: the signature shows that the key is his.

        Raises InvalidInput (`invalid_signature` and others), TooLarge (`quota_exceeded` and others), NotFound for an
        unknown Datanet, Forbidden (`not_permitted`, `licence_withdrawn`) where its terms leave him out, Conflict
        (`licence_not_kept`) for rows that were sealed under another licence, and Unavailable when storage is; then
        nothing was acknowledged, and sending the same again is safe.

        `prepared` is what another process has found of the contribution (`preparing`), by `rules` of its Datanet.
        """
        begun = self.begin(contribution, prepared)
        if isinstance(begun, ContributionReceipt):
            return self.told(begun)
        self._store(begun)
        return self.told(begun.receipt)

    def begin(
        self, contribution: Contribution, prepared: Prepared | None = None
    ) -> PendingContribution | ContributionReceipt:
        """The first step of `contribute`: the verdicts are fixed. Of one that was stored before, its first receipt.
        Either is as the gate found it, and leaves the installation as `told` has it."""
        one = self._checked(contribution)
        identifier = one.contribution_id
        if (known := self._registry.first_receipt(identifier)) is not None:
            return self._registry.find_pending(identifier) or known
        self._check_new(one)
        if not self._registry.knows_contributor(contribution.contributor_id):
            self._register(contribution.contributor_id, contribution.public_key, contribution.contributor_id)
        self._check_quota(one)
        return self._begin(contribution, prepared)

    def store(self, pending: PendingContribution) -> None:
        """The second step: its rows stand in the shards. It may be taken in another thread, while the next contribution
        is begun, and nothing happens where another has taken the third meanwhile. Rows that are taken back before it
        comes stay away."""
        identifier = pending.receipt.contribution_id
        turn = self._unfinished.get(identifier)
        if turn is None:
            return
        with turn:
            if identifier in self._unfinished:
                self._append(pending)

    def finish(self, *pending: PendingContribution) -> None:
        """The third step, of as many as there are at once: nothing of them is pending."""
        identifiers = [one.receipt.contribution_id for one in pending]
        self._registry.finish_contributions(identifiers)
        for identifier in identifiers:
            self._unfinished.pop(identifier, None)

    def is_finished(self, pending: PendingContribution) -> bool:
        return pending.receipt.contribution_id not in self._unfinished

    def admit(self, one: Announced, *, is_dry_run: bool = False) -> Rules | None:
        """The rules to prepare a contribution by; None for one that was judged before. Raises what `contribute` would
        of one that may not come, whatever its rows, or `preview` of a dry run, which no quota counts: nobody is to work
        at it then."""
        self._check_party(one)
        if self._registry.first_receipt(one.contribution_id) is not None:
            return None
        self._check_new(one)
        if not is_dry_run:
            self._check_quota(one)
        return self.rules(one.datanet)

    def rules(self, name: str) -> Rules:
        """What the Datanet asks of rows, by which contributions are prepared."""
        return Rules.of(self._registry.datanet(name).row_schema, self.terms(name))

    @property
    def detectors(self) -> Detectors:
        return self._detectors

    def told(self, receipt: ContributionReceipt, party: str | None = None) -> ContributionReceipt:
        """A receipt as `party` may read it, its contributor unless it is given: see `disclosure`."""
        reader = receipt.contributor_id if party is None else party
        return replace(receipt, verdicts=self._disclosure.told(receipt.verdicts, reader, self._clock.now_ms()))

    def receipt(self, name: str, identifier: str, party: str = ANYBODY) -> ContributionReceipt:
        """What became of a contribution by now, after reviews and appeals, as `party` may read it. Raises NotFound
        (`unknown_contribution`) for one that isn't stored (yet)."""
        found = self._registry.receipt(identifier)
        if found is None or found.datanet != name or self._registry.is_pending(identifier):
            raise NotFound(
                f"{name!r} has no contribution {identifier}", code="unknown_contribution", param="contribution_id"
            )
        return self.told(found, party)

    def judged(self, identifier: str) -> ContributionReceipt | None:
        """What `contribute` answers, or will once storage is back: the verdicts are fixed before the rows are stored.
        None for a contribution that wasn't judged."""
        found = self._registry.first_receipt(identifier)
        return None if found is None else self.told(found)

    def standing(self, identifier: str) -> ContributionReceipt | None:
        """`judged`, with the verdicts as reviews and appeals have left them."""
        found = self._registry.receipt(identifier)
        return None if found is None else self.told(found)

    def preview(self, contribution: Contribution, prepared: Prepared | None = None) -> tuple[Verdict, ...]:
        """The verdicts that `contribute` would give now; stores nothing."""
        one = self._checked(contribution)
        known = self._registry.first_receipt(one.contribution_id)
        if known is None:
            self._check_given(one)
        self._check_new_key(one)
        sealed = self._registry.seals.place(one.contributor_id, one.digest, self._clock.now_ms())
        verdicts = known.verdicts if known else self._judge(contribution, sealed, prepared)[0]
        return self._disclosure.told(verdicts, one.contributor_id, self._clock.now_ms())

    def hold_appeal(self, appeal: Appeal) -> Judged:
        """Keep the row of an appeal until it is closed, and tell what the gate had said as the log may have it (see
        `disclosure`); the same again keeps it once.

        Raises InvalidInput (`invalid_signature`; `wrong_row` for another row than was judged), NotFound
        (`unknown_contribution`), Forbidden (`not_the_contributor`), Conflict (`row_accepted`, `row_removed`),
        Unavailable where a rejected row can't be forgotten now.
        """
        self._registry.holders.check(appeal.public_key)
        self._check_licence_kept(appeal)
        self._forget_rejected()  # or what a review left to be forgotten would be what the appeal brings back
        now_ms = self._clock.now_ms()
        return self._disclosure.told_openly(self._registry.appeals.hold(appeal, now_ms), now_ms)

    def check_decider(self, row_id: str, account: str, public_key: str) -> None:
        """Raises Forbidden (`not_a_second_party`) for whoever contributed the row that an appealed one is said to
        repeat: the log can't tell where it doesn't name him. To be asked of registered reviewers only: of anybody else
        the answer would tell whose a private row is."""
        self._registry.appeals.check_decider(row_id, account, public_key)

    def drop_appeal(self, row_id: str) -> None:
        """Forget an appeal that came to nothing."""
        self._registry.appeals.drop(row_id)

    def close_appeal(self, row_id: str, state: AppealState) -> None:
        """Do what the log says of an appeal: an `overturned` row is accepted, in its contribution's place; whatever it
        says, the appeal's own copy of the row is deleted. May be repeated. Raises Corrupt where the row's Datanet is
        damaged and would have to take it: then it stays held."""
        held = self._registry.appeals.find(row_id)
        if held is None or held.draft is None:
            return
        if state == "overturned":
            self._check_sound(held.datanet)
            self._accept(held, held.draft)
        else:
            self._registry.appeals.close(row_id, state)
            self._forget_rejected()

    def appeals(self, name: str) -> list[str]:
        """Ids of the Datanet's rows that were appealed, in the order of the appeals."""
        return self._registry.appeals.rows_of(self._registry.datanet(name).name)

    def held_appeals(self) -> dict[str, int]:
        """Ids of the rows that are kept for an appeal, with for how many milliseconds by now."""
        return self._registry.appeals.held(self._clock.now_ms())

    def appealed_row(self, row_id: str) -> RowDraft:
        """What a reviewer looks at. Raises NotFound (`row_not_kept`) where the appeal is closed."""
        held = self._registry.appeals.find(row_id)
        if held is None or held.draft is None:
            raise NotFound(f"no row {row_id} is kept for an appeal", code="row_not_kept", param="row_id")
        return held.draft

    def add_known_answer(self, name: str, draft: RowDraft, by: str, *, accept: bool) -> str:
        """An item among those that reviewers are shown, by which they are measured (`reviews`). By the owner.

        Raises Forbidden (`not_the_owner`), InvalidInput (`wrong_schema` and others)."""
        self._check_owner(name, by)
        draft_bytes(draft, 0)
        problems = self._registry.datanet(name).row_schema.problems(draft)
        if problems:
            raise InvalidInput(
                f"no row of {name!r}: {problems[0].message}",
                code="wrong_schema",
                param="extra",
                fix="give what the Datanet's row schema asks for: the item stands among its rows",
            )
        return self._registry.reviews.add_known(name, draft, accept=accept)

    def review_queue(self, name: str, reviewer: str, limit: int) -> list[tuple[str, RowDraft]]:
        """What `reviewer` has yet to look at: ids and texts, known answers among them."""
        is_owner = reviewer == self._registry.datanet(name).owner
        self.decide_panels()
        items, known = self._registry.reviews.queue(name, reviewer, limit, is_owner=is_owner)
        rows = {
            row.row_id: _draft(row) for row in self._layout.take(name, [item for item in items if item not in known])
        }
        return [(item, known.get(item) or rows[item]) for item in items]

    def texts(self, name: str, row_ids: Sequence[str]) -> dict[str, RowDraft]:
        """What those of `row_ids` say that stand in the Datanet."""
        gone = self._forgotten.union(self.removed_among(row_ids))
        here = [row_id for row_id in self._registry.contributed_by(name, row_ids) if row_id not in gone]
        self._finish_pending(name)
        return {row.row_id: _draft(row) for row in self._layout.take(name, here)}

    def review(self, name: str, item: str, reviewer: str, *, accept: bool) -> None:
        """What `reviewer` says of an item of his queue. Once it is decided, an accepted row is in the next version, and
        another is forgotten. The same again changes nothing, and nobody learns which items were known.

        Raises NotFound (`not_in_review`), Conflict (`already_reviewed`; `panel_review` where reviewers commit first),
        Forbidden (`own_row`).
        """
        reviews, owner = self._registry.reviews, self._registry.datanet(name).owner
        if reviewer != owner and self.terms(name).panel:
            raise Conflict(
                f"rows of {name!r} are reviewed by a panel",
                code="panel_review",
                param="row_id",
                fix="commit to your verdict first: 'openledger reviews commit'",
            )
        if reviews.add(name, item, reviewer, accept=accept, now_ms=self._clock.now_ms()):
            decided = reviews.majority(name, item, owner, self.terms(name).min_reviews)
            if decided is not None:
                reviews.decide(name, item, self._clock.now_ms(), accept=decided)
        self._forget_rejected()

    def commit_review(self, name: str, item: str, reviewer: str, digest: str) -> None:
        """Take a seat on the panel of an item of the queue, by the digest of a verdict (`core.paneling`). The same
        again changes nothing.

        Raises Conflict (`no_panel`, `already_reviewed`, `panel_full`), NotFound (`not_in_review`), Forbidden
        (`own_row`, also for the owner, who decides alone), InvalidInput.
        """
        terms = self.terms(name)
        if not terms.panel:
            raise Conflict(
                f"rows of {name!r} are reviewed without a panel", code="no_panel", param="row_id",
                fix="tell your verdict: 'openledger reviews decide'",
            )  # fmt: skip
        if reviewer == self._registry.datanet(name).owner:
            raise Forbidden(
                "the owner sits on no panel", code="own_row", param="row_id", fix="decide alone: 'reviews decide'"
            )
        seated = item in (seat.row_id for seat in self._registry.panels.seats(name, reviewer, self._clock.now_ms()))
        if not seated:
            self._registry.reviews.check_waits(name, item, reviewer)
        self._registry.panels.commit(name, item, reviewer, digest, terms.min_reviews, self._clock.now_ms())

    def reveal_review(self, name: str, item: str, reviewer: str, nonce: str, *, accept: bool) -> None:
        """Tell the verdict of a seat, once its panel is full. The same again changes nothing.

        Raises NotFound (`no_commitment`), InvalidInput (`wrong_reveal`), Conflict (`panel_open`, `panel_done`).
        """
        panels, now_ms = self._registry.panels, self._clock.now_ms()
        self._registry.datanet(name)
        panels.check_reveal(name, item, reviewer, nonce, now_ms, accept=accept)
        with contextlib.suppress(NotFound):  # it waits no more: the owner decided, or it was taken back
            self._registry.reviews.add(name, item, reviewer, accept=accept, now_ms=now_ms)
        panels.mark_revealed(item, reviewer)
        self.decide_panels()

    def decide_panels(self) -> None:
        """Of panels that all have revealed on, or whose time is up. May be repeated."""
        for name, item in self._registry.panels.due(self._clock.now_ms()):
            decided = self._registry.reviews.majority(name, item, self._registry.datanet(name).owner, 1)
            if decided is not None and self._registry.reviews.is_waiting(name, item):
                self._registry.reviews.decide(name, item, self._clock.now_ms(), accept=decided)
            self._registry.panels.mark_done(item)
        self._forget_rejected()

    def panel_seats(self, name: str, reviewer: str) -> list[PanelSeat]:
        """The reviewer's own: what he has to reveal, and by when."""
        return self._registry.panels.seats(self._registry.datanet(name).name, reviewer, self._clock.now_ms())

    def withheld_reviews(self, name: str) -> dict[str, int]:
        """How many verdicts each reviewer committed to and never told."""
        return self._registry.panels.withheld(self._registry.datanet(name).name)

    def untold_reviews(self) -> list[ReviewOutcome]:
        """What reviewers decided and the keeper of reputations hasn't heard; whoever told it says so by
        `mark_review_told`."""
        return self._registry.reviews.untold()

    def mark_review_told(self, row_id: str) -> None:
        self._registry.reviews.mark_told(row_id)

    def reviewers(self, name: str) -> list[ReviewerRecord]:
        """How much each reviewed, and how well."""
        return self._registry.reviews.records(self._registry.datanet(name).name)

    def num_undecided(self, identifier: str) -> int:
        """Of a contribution's rows, how many reviewers may still decide."""
        return self._registry.reviews.num_undecided(identifier)

    def add_feedback(self, feedback: Feedback) -> None:
        """Keep that feedback was given, and by whom. Raises Conflict (`already_rated`), NotFound, TooLarge
        (`too_many_ratings`)."""
        self._registry.datanet(feedback.datanet)
        self.check_key(feedback.contributor_id, feedback.public_key)
        self._registry.feedback.check(feedback)
        if not self._registry.knows_contributor(feedback.contributor_id):
            self.register_contributor(feedback.public_key, feedback.contributor_id)
        self._registry.feedback.add(feedback, self._clock.now_ms())

    def feedback(self, answer_id: str) -> list[Feedback]:
        return self._registry.feedback.of_answer(answer_id)

    def leaderboard(self, name: str) -> Leaderboard:
        return self._registry.leaderboard(self._registry.datanet(name).name, self._clock.now_ms())

    def leaderboard_page(self, name: str, after: str, limit: int) -> LeaderboardPage:
        """A page of it, and the sums of all. Raises NotFound (`unknown_contributor`) as `Leaderboard.page`."""
        return self.leaderboard(name).page(after, limit)

    def withdraw(self, withdrawal: Withdrawal) -> Removal:
        """Forget rows at their contributor's wish. When this returns, no shard holds them, and the next version leaves
        them out; in published ones their ids stay, with a tombstone. The same again gives the first answer, and rows
        that are gone already are gone by the removal that took them, under whatever nonce.

        Raises InvalidInput (`invalid_signature` and others), NotFound (`unknown_row`) for rows that the Datanet
        doesn't have, Forbidden (`not_your_row`) for another's, Unavailable when storage is; sending it again is safe.
        """
        check_withdrawal(withdrawal, self._registry.holders.held_by)
        removal = withdrawn(withdrawal, self._clock.now_ms())
        if self._registry.tombstones.find(removal.removal_id) is None:
            self._registry.holders.check(withdrawal.public_key)
        for row_id, contributor in self._contributors_of(removal).items():
            if contributor != withdrawal.contributor_id:
                raise Forbidden(
                    f"the row {row_id} is another contributor's",
                    code="not_your_row",
                    param=row_id,
                    fix="withdraw only rows that were contributed with this key",
                )
        return self._take_back(removal)

    def remove(self, name: str, row_ids: Sequence[str], by: str, reason: str) -> Removal:
        """Forget rows at the wish of the Datanet's owner, or by his hand at a court's; as `withdraw`.

        Raises Forbidden (`not_the_owner`), InvalidInput, NotFound.
        """
        self._check_owner(name, by)
        removal = removed(name, row_ids, by, reason, self._clock.now_ms())
        self._contributors_of(removal)
        return self._take_back(removal)

    def removals(self, name: str) -> list[Removal]:
        """Everything that was taken back from the Datanet, oldest first."""
        return self._registry.tombstones.of_datanet(self._registry.datanet(name).name)

    def removed_among(self, row_ids: Sequence[str]) -> set[str]:
        """Those of any Datanet's rows that were taken back."""
        return self._registry.tombstones.among(row_ids)

    def unlogged_removals(self) -> list[Removal]:
        """Removals that the log lacks; whoever has put one there says so by `mark_removal_logged`."""
        return self._registry.tombstones.unlogged()

    def mark_removal_logged(self, removal_id: str) -> None:
        self._registry.tombstones.mark_logged(removal_id)

    def tombstones(self, name: str, number: int) -> list[Tombstone]:
        """Of the version's rows that were removed since it was published."""
        return self._registry.tombstones.of_rows(read_row_ids(self._folder / "versions", self.version(name, number)))

    def publish(self, name: str) -> DatanetVersion:
        """Freeze the accepted rows as the next version, with the order in which they were credited, the terms and the
        statistics. Where no row has changed, the current version again, as it was published.

        Raises InvalidInput (`empty_datanet`) when no row is accepted.
        """
        self._registry.datanet(name)
        self._check_sound(name)
        self._finish_pending(name)
        accepted = self._registry.row_ids(name, ("accept",))
        if not accepted:
            raise InvalidInput(f"the Datanet {name!r} has no accepted row", code="empty_datanet", param="name")
        published, roots = self._registry.versions(name), (row_root(accepted), credit_root(accepted))
        if published and (published[-1].row_root, published[-1].credit_root) == roots:
            return published[-1]
        version = DatanetVersion(
            datanet=name,
            number=len(published) + 1,
            row_root=roots[0],
            num_rows=len(accepted),
            gate_version=GATE_VERSION,
            published_ms=self._clock.now_ms(),
            credit_root=roots[1],
        )
        stated = Stated(terms=self.terms(name), statistics=tuple(self.statistics(name)))
        schema = self._registry.datanet(name).row_schema
        digest = write_manifest(self._folder / "versions", version, accepted, schema, stated)
        self._registry.add_version(version, digest)
        return version

    def credit(self, name: str, number: int) -> list[str]:
        """Ids of the version's rows, removed ones too, in the order of credit (`versions`); empty for one of before."""
        return read_credit(self._folder / "versions", self.version(name, number))

    def version(self, name: str, number: int) -> DatanetVersion:
        for version in self.versions(name):
            if version.number == number:
                return version
        raise NotFound(f"the Datanet {name!r} has no version {number}", code="unknown_version", param="number")

    def versions(self, name: str) -> list[DatanetVersion]:
        return self._registry.versions(self._registry.datanet(name).name)

    def diff(self, name: str, older: int, newer: int) -> tuple[list[str], list[str]]:
        """Ids of the rows that version `newer` has and `older` hasn't, and of those it has no more; both sorted."""
        folder = self._folder / "versions"
        before, after = (set(read_row_ids(folder, self.version(name, number))) for number in (older, newer))
        return sorted(after - before), sorted(before - after)

    def rows(self, name: str, number: int) -> list[Row]:
        """The version's rows but for those removed since, sorted by row id. Raises Corrupt where manifest or rows
        aren't what was published."""
        return sorted(self._layout.take(name, self._standing_ids(name, number)), key=lambda row: row.row_id)

    def export(self, name: str, number: int, folder: Path) -> None:
        """Write a version as Parquet with Croissant metadata and a dataset card into `folder` (see `export`)."""
        version, rows, stated = self.version(name, number), self.rows(name, number), self.stated(name, number)
        write_export(folder, self.datanet(name), stated.terms, version, rows, stated.statistics)
        leaves = Datanets.manifest_rows(self, name, number, "", version.num_rows)  # the actor's is to be waited for
        write_leaves(folder, Datanets.manifest(self, name, number), leaves)

    def stated(self, name: str, number: int) -> Stated:
        """The terms and statistics that the version was published with; of one of before, those of now."""
        version = self.version(name, number)
        digest = self._registry.stated_digest(version)
        return read_stated(self._folder / "versions", version, digest) or self._stated_now(name)

    def _stated_now(self, name: str) -> Stated:
        return Stated(terms=self.terms(name), statistics=tuple(self.statistics(name)))

    def manifest(self, name: str, number: int) -> dict[str, Any]:
        """What a version says of itself, but for its rows: roots, gate, terms, statistics, row schema."""
        version = self.version(name, number)
        stated = self._manifest(name, number).stated or self._stated_now(name)
        return {**asdict(version), "row_schema": self.datanet(name).row_schema.to_json(), **asdict(stated)}

    def manifest_rows(self, name: str, number: int, after: str, limit: int) -> list[ManifestRow]:
        """The version's next `limit` rows behind the id `after`, removed ones too, by id: from all of them anyone
        recomputes its roots."""
        told = self._manifest(name, number)
        part = slice(start := bisect_right(told.row_ids, after), start + limit)
        row_ids, places = told.row_ids[part], told.places[part] or (None,) * limit
        gone = {one.row_id: one.digest for one in self._registry.tombstones.of_rows(row_ids)}
        return [
            ManifestRow(row_id=row_id, place=place, tombstone=gone.get(row_id))
            for row_id, place in zip(row_ids, places, strict=False)
        ]

    def _manifest(self, name: str, number: int) -> Manifest:
        version = self.version(name, number)
        known = self._manifests.find(version)
        return known or self._manifests.keep(version, self._manifest_reader(version)())

    def _manifest_reader(self, version: DatanetVersion) -> Callable[[], Manifest]:
        """Which any thread may call."""
        return partial(read_manifest, self._folder / "versions", version, self._registry.stated_digest(version))

    def copies(self, name: str, number: int) -> dict[str, str]:
        """The version's rows that say what an earlier accepted row says, in this Datanet or in another contributor's
        place in any: row id to the earlier row's id. No adapter is trained on them (`clusters`, and `seals` for those
        that sealed rows displaced)."""
        ids = set(read_row_ids(self._folder / "versions", self.version(name, number)))
        for other in self._registry.names():
            self._check_sound(other)
        self._finish_pending(*self._registry.names())
        rows = {row.row_id: row for other in self._registry.names() for row in self._accepted(other)}
        displaced = self._registry.seals.displaced().items()
        known = {row: first for row, first in displaced if row in rows and first in rows}
        found = {**known, **self._said_before(rows, by_strangers=False)}
        ids -= self._registry.appeals.cleared()
        return {row: first for row, first in found.items() if row in ids and _takes_its_place(rows[first], rows[row])}

    def alike(self, name: str, number: int) -> dict[str, str]:
        """The version's rows that would be copies if every row were another contributor's: row id to the earliest row
        that says the same. A contributor may restate his own rows; what is measured must not be what was trained."""
        return self._said_before({row.row_id: row for row in self.rows(name, number)}, by_strangers=True)

    def statistics(self, name: str) -> list[ContributorStatistics]:
        """For each contributor of the Datanet, sorted by name: rows by outcome, and why."""
        return self._registry.statistics(self._registry.datanet(name).name)

    def stored_count(self, name: str) -> int:
        """Rows that stand in the shards: the accepted ones and those in review."""
        return self._layout.count(self._registry.datanet(name).name)

    def _checked(self, contribution: Contribution) -> Announced:
        """The signature also of one that comes prepared: its id doesn't cover the rows themselves."""
        check_signature(contribution)
        one = announced(contribution)
        self._check_party(one)
        return one

    def _check_party(self, one: Announced) -> None:
        self._check_sound(one.datanet)
        self.check_key(one.contributor_id, one.public_key)
        self._check_permitted(one.datanet, one.contributor_id, "contribute")

    def _check_new(self, one: Announced) -> None:
        """What is asked of a contribution that wasn't judged before: a withdrawn licence takes back no answer."""
        self._check_given(one)
        self._check_new_key(one)

    def _check_given(self, one: Announced) -> None:
        """Raises Forbidden (`licence_withdrawn`), and Conflict (`licence_not_kept`) for rows of others than the owner
        that were sealed under a licence which the present one doesn't keep."""
        present, owner = self.terms(one.datanet), self._registry.datanet(one.datanet).owner
        check_not_withdrawn(present)
        sealed = self._registry.seals.licence_of(one.contributor_id, one.digest)
        is_owners = owner in (one.contributor_id, f"contributor:{one.contributor_id}")
        if sealed and not is_owners and not keeps(sealed, present.licence):
            raise Conflict(
                f"the rows were sealed under {sealed}, and {present.licence} doesn't keep what that asks",
                code="licence_not_kept",
                param="licence",
                fix="they weren't taken: to give them under the licence of now, sign them anew, with another nonce",
            )

    def _check_new_key(self, one: Announced) -> None:
        """Raises Forbidden (`key_replaced`) unless the rows were sealed with that key while it was in force."""
        holders, key = self._registry.holders, one.public_key
        if holders.signs(key) or self._registry.seals.key_of(one.contributor_id, one.digest) == key:
            return
        holders.check(key)

    def _check_sound(self, name: str) -> None:
        if name in self._damages:
            raise self._damages[name].with_traceback(None)

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """What is damaged of one Datanet keeps no other from going on."""
        try:
            yield
        except Corrupt as error:
            self._note(name, [error])

    def _note(self, name: str, damages: Sequence[Corrupt]) -> None:
        """The first that is known of is told."""
        if damages and name not in self._damages:
            self._damages[name] = damages[0]
            _log.error("the Datanet %s is closed: %s", name, damages[0])

    def _check_licences_kept(self, name: str, licence: str, owner: str) -> None:
        """By a Datanet's new `licence`: that of others' rows, and what rows, the owner's too, name themselves. One that
        isn't known here is kept by the licence alone under which a reviewer let its row in."""
        present, licences = self._registry.terms.terms(name).licence, self._registry.terms.licences
        if licence in (present, WITHDRAWN):
            return
        check_kept(licences.given(name, present, owner), licence)
        self._check_sound(name)
        self._finish_pending(name)
        stored = self._layout.take(name, self._registry.row_ids(name, _STORED))
        named = Counter((own, row.contribution_id) for row in stored if (own := own_licence(row)))
        lost = Counter[str]()
        for (own, contribution), number in named.items():
            kept = row_keeps(own, licence)
            if kept is None:
                kept = licences.of_contribution(contribution, present) == licence
            lost[own] += 0 if kept else number
        for own, number in (+lost).items():
            raise not_kept(number, own, licence)

    def _check_licence_kept(self, appeal: Appeal) -> None:
        """An overturned row comes in under the licence of now: what it was given under and what it names itself has to
        be kept by it. Of a contribution that there isn't `AppealStore.hold` tells."""
        if self._registry.first_receipt(appeal.contribution_id) is not None:
            present = self.terms(appeal.datanet).licence
            given = self._registry.terms.licences.of_contribution(appeal.contribution_id, present)
            check_kept({given: 1}, present)
            own = ""
            with contextlib.suppress(ValueError):  # its `extra` is none, and names nothing
                own = own_licence(appeal.draft)
            if own and row_keeps(own, present) is False:
                raise not_kept(1, own, present)

    def _check_quota(self, one: Announced) -> None:
        """Raises TooLarge (`quota_exceeded`) and TooManyRequests (`rate_exceeded`) for more rows in a day, or in an
        hour, than the Datanet takes from one contributor."""
        terms, now_ms = self._registry.terms.terms(one.datanet), self._clock.now_ms()
        if not (terms.max_rows_a_day or terms.max_rows_an_hour):
            return
        received = self._registry.received_since(one.datanet, one.contributor_id, now_ms - DAY_MS)
        check_day(one.datanet, terms.max_rows_a_day, received, one.num_rows)
        lately = [(when, number) for when, number in received if when > now_ms - HOUR_MS]
        check_hour(one.datanet, terms.max_rows_an_hour, lately, one.num_rows, now_ms)

    def _judge(
        self, contribution: Contribution, sealed: Place | None, prepared: Prepared | None = None
    ) -> tuple[tuple[Verdict, ...], Overlay]:
        rules = self.rules(contribution.datanet)
        with rare_collections():
            if prepared is not None and prepared.fits(contribution, self._detectors, rules):
                ids, examined = prepared.row_ids, prepared.examined
            else:
                ids = tuple(row_ids(contribution))
                examined = tuple(examine(contribution.drafts, self._detectors, rules))
            coming = [one.features for one in examined if not one.reasons]
            overlay = self._index.overlay(sealed or self._registry.next_place(), coming)
            return tuple(decide(ids, examined, overlay)), overlay

    def _begin(self, contribution: Contribution, prepared: Prepared | None) -> PendingContribution:
        now_ms, own = self._clock.now_ms(), (contribution.contributor_id, digest_of(contribution))
        sealed = self._registry.seals.place(*own, now_ms)
        verdicts, overlay = self._judge(contribution, sealed, prepared)
        displaced = self._index.displaced_by(overlay) if sealed else {}
        opening = Opening(contributor_id=own[0], digest=own[1], displaced=displaced) if sealed else None
        pending = self._registry.begin_contribution(contribution, verdicts, GATE_VERSION, now_ms, opening)
        self._unfinished[pending.receipt.contribution_id] = threading.Lock()
        self._index.absorb(overlay)
        return pending

    def _store(self, pending: PendingContribution) -> None:
        """Behind a thread that is at it: what that one has stored is not stored again."""
        self.store(pending)
        self.finish(pending)

    def _append(self, pending: PendingContribution) -> None:
        name, rows = pending.receipt.datanet, list(_stored_rows(pending))
        if self._forgotten.issuperset(row.row_id for row in rows):
            return
        self._layout.append(name, rows, pending.receipt.contribution_id)
        if late := [row.row_id for row in rows if row.row_id in self._forgotten]:
            self._layout.remove(name, late)

    def _accept(self, held: HeldRow, draft: RowDraft) -> None:
        """A crash on the way leaves it held: the same again goes on."""
        (features,), place = features_of([(draft.prompt, draft.completion)]), self._registry.place_of(held.sequence)
        self._forgotten.discard(held.row_id)
        if held.outcome == "reject" and not self._layout.holds(held.datanet, held.row_id):
            row = _row(held, held.row_id, held.ordinal, draft)
            self._layout.append(held.datanet, [row], f"{held.contribution_id}:{held.ordinal}")
        repeating = dict.fromkeys(self._index.repeated_by(features, place), held.row_id)
        self._registry.appeals.accept(held.row_id, repeating)
        if held.outcome == "reject":
            self._index.discard({held.row_id})
            self._index.add(held.row_id, features, place, held.ordinal)

    def _contributors_of(self, removal: Removal) -> dict[str, str]:
        """Raises NotFound for a row that the Datanet never stored."""
        self._registry.datanet(removal.datanet)
        found = self._registry.contributed_by(removal.datanet, removal.row_ids)
        for row_id in removal.row_ids:
            if row_id not in found:
                raise NotFound(
                    f"{removal.datanet!r} has no row {row_id}",
                    code="unknown_row",
                    param=row_id,
                    fix="a row that the gate rejected was never stored: nothing of it is to be taken back; the ids of"
                    " the others stand in what 'openledger contribute --receipts FILE' wrote",
                )
        return found

    def _take_back(self, removal: Removal) -> Removal:
        """Where all of its rows are gone already nothing is written: the removal that took the last of them is told."""
        known = self._registry.tombstones.find(removal.removal_id)
        if known is None:
            self._finish_pending(removal.datanet)
            gone = self._registry.tombstones.row_ids()
            if gone.issuperset(removal.row_ids):
                return self._registry.tombstones.that_took(removal.row_ids)
            rows = self._layout.take(removal.datanet, [row_id for row_id in removal.row_ids if row_id not in gone])
            self._registry.tombstones.begin(removal, [tombstone(row) for row in rows])
            self._index.discard(set(removal.row_ids))
        return self._forget(known or removal)

    def _forget(self, removal: Removal) -> Removal:
        self._registry.appeals.close_removed()
        self._forgotten.update(removal.row_ids)
        self._layout.remove(removal.datanet, removal.row_ids)
        self._forget_words()
        self._registry.tombstones.finish(removal.removal_id)
        return removal

    def _forget_rejected(self) -> None:
        """Rows that reviewers didn't accept leave storage and the index of duplicates."""
        waiting = self._registry.reviews.unforgotten()
        self._forgotten.update(row_id for _, row_id in waiting)
        gone = []
        for datanet, row_id in waiting:
            if datanet not in self._damages:
                with self._noting(datanet):
                    self._layout.remove(datanet, [row_id])
                    gone.append(row_id)
        if gone:
            self._index.discard(set(gone))
            self._forget_words()
            self._registry.reviews.mark_forgotten(gone)

    def _said_before(self, rows: Mapping[str, Row], *, by_strangers: bool) -> dict[str, str]:
        """Which of `rows` say what an earlier one says; `by_strangers` as if no two were one contributor's."""
        order = [row_id for row_id in self._registry.credit_order() if row_id in rows]
        evidence = [_evidence(rows[row_id], place) for place, row_id in enumerate(order)]
        if by_strangers:
            evidence = [replace(one, contributor_id=one.row_id) for one in evidence]
        clusters = EvidenceClusters(self._word_weights(evidence))
        clusters.add(evidence)
        return {row: first for row, first in clusters.representatives().items() if row != first}

    def _standing_ids(self, name: str, number: int) -> list[str]:
        """Of the version's rows that weren't removed since."""
        self._check_sound(name)
        gone = self._registry.tombstones.row_ids()
        return [i for i in read_row_ids(self._folder / "versions", self.version(name, number)) if i not in gone]

    def _accepted(self, name: str) -> Iterator[Row]:
        return self._layout.take(name, self._registry.row_ids(name, ("accept",)))

    def _word_weights(self, rows: Sequence[ClusterRow]) -> WordWeights:
        """The installation's table of words, made of the rows that are there when it is first needed, and kept."""
        path = self._folder / _WORD_WEIGHTS
        if not path.exists():
            _write_weights(path, WordWeights.of(rows))
        try:
            kept = json.loads(path.read_text())
            return WordWeights(kept["num_rows"], kept["counts"])
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(
                f"the table of words {path} can't be read: {error}",
                code="corrupt_word_weights",
                param=str(path),
                fix="restore the file from a backup: another table would find other copies",
            ) from error

    def _forget_words(self) -> None:
        """Leave no word in the table that no row has any more. Weights of all other words stay what they were: where
        not every row can be read, this is left to an opening that can read them all."""
        path = self._folder / _WORD_WEIGHTS
        if not path.exists():
            return
        kept, seen = self._word_weights(()), set[str]()
        is_readable = self._are_rows_checked and not self._damages
        for name in self._registry.names() if is_readable else ():
            with self._noting(name):
                seen |= self._words_of(name, kept.counts.keys())
        is_due = not is_readable or bool(self._damages)
        if not is_due and seen != kept.counts.keys():
            _write_weights(path, WordWeights(kept.num_rows, {word: kept.counts[word] for word in seen}))
        if is_due != (self._registry.find_property(_WORDS_DUE) == "1"):
            self._registry.set_property(_WORDS_DUE, str(int(is_due)))

    def _words_of(self, name: str, known: Set[str]) -> set[str]:
        """Those of the `known` words that the Datanet's rows have. Raises Corrupt unless all of them can be read."""
        self._finish_pending(name)
        seen, found = set[str](), set[str]()
        for row in self._layout.scan(name):
            found.add(row.row_id)
            seen |= known & (row_words(row.prompt) | row_words(row.completion))
        self._check_complete(name, found)
        return seen

    def _finish_pending(self, *names: str) -> None:
        """What was judged of these Datanets stands in the shards, also what other threads are storing."""
        for identifier in self._registry.pending_ids(set(names)) if self._unfinished else ():
            if (pending := self._registry.find_pending(identifier)) is not None:
                self._store(pending)

    def _built_index(self, *, by_shard: bool) -> Index:
        """Ten thousand rows at a time, in the order of credit; of a damaged Datanet those that can be read."""
        if by_shard:
            key = FeatureKey(bytes.fromhex(self._registry.fix_property(_FEATURE_KEY, secrets.token_hex(KEY_BYTES))))
            num_owners = self._layout.num_shards
            session = self._registry.epoch
            return DividedIndex(self._shards, num_owners, key, session, self._credited_rows, self._features_of)
        index = DuplicateIndex()
        order = iter(self._credited_rows())
        while part := list(islice(order, _INDEXED_AT_ONCE)):
            index.extend([(row.row_id, features, row.order) for row, features in self._features_of(part)])
        return index

    def _moved_index(self, *, by_shard: bool) -> Index:
        """It, where the registry says from now on that it is; else nothing of it is left."""
        moved: Index | None = None
        try:
            moved = self._built_index(by_shard=by_shard)
            self._registry.set_property(_BY_SHARD, str(int(by_shard)))
        except BaseException:
            if isinstance(moved, DividedIndex):
                moved.close()
            if by_shard:
                emptied(self._shards, self._registry.epoch)
            raise
        return moved

    def _credited_rows(self) -> list[CreditedRow]:
        for name in self._registry.names():
            with self._noting(name):
                self._finish_pending(name)
        return self._registry.credited()

    def _features_of(self, part: Sequence[CreditedRow]) -> list[tuple[CreditedRow, Features]]:
        """Of those rows that can be read; what is damaged is noted."""
        wanted: dict[str, list[str]] = defaultdict(list)
        for one in part:
            wanted[one.datanet].append(one.row_id)
        rows: dict[str, Row] = {}
        for name, ids in wanted.items():
            found, damages = self._layout.take_sound(name, ids)
            rows.update((row.row_id, row) for row in found)
            self._note(name, damages)
        read = [one for one in part if one.row_id in rows]
        features = features_of((rows[one.row_id].prompt, rows[one.row_id].completion) for one in read)
        return list(zip(read, features, strict=True))

    def _check_rows(self, name: str) -> None:
        """Note what is damaged of a Datanet, and have no shard keep what was taken back, as of a process that was cut
        off, or what nobody looks for there."""
        standing, damages = self._layout.sound(name)
        self._note(name, damages)
        if not damages:
            with self._noting(name):
                self._check_complete(name, {row_id for row_ids in standing.values() for row_id in row_ids})
        with self._noting(name):
            self._layout.settle(name, standing, self._forgotten)

    def _check_complete(self, name: str, found: set[str]) -> None:
        credited = self._registry.row_ids(name, _STORED)
        missing = [row_id for row_id in credited if row_id not in found]
        if missing:
            folders = ", ".join(f"shard-{number}/{name}" for number in self._layout.shard_numbers(missing))
            raise Corrupt(
                f"the Datanet {name!r} misses {len(missing)} stored rows in {folders}",
                code="rows_missing",
                param=name,
                fix="restore what it names from a backup, this Datanet's folder alone, then start again: beside it"
                " others write on",
            )


def _write_weights(path: Path, weights: WordWeights) -> None:
    """A word of one row alone weighs as much as an unknown one, and isn't kept."""
    counts = {word: count for word, count in weights.counts.items() if count > 1}
    write_json_durably(path, {"num_rows": weights.num_rows, "counts": counts})


def _stored_rows(pending: PendingContribution) -> Iterator[Row]:
    receipt = pending.receipt
    for verdict, draft in zip(receipt.verdicts, pending.drafts, strict=True):
        if verdict.outcome in _STORED:
            yield _row(receipt, verdict.row_id, verdict.ordinal, draft)


def _row(of: ContributionReceipt | HeldRow, row_id: str, ordinal: int, draft: RowDraft) -> Row:
    return Row(
        row_id=row_id,
        datanet=of.datanet,
        contributor_id=of.contributor_id,
        contribution_id=of.contribution_id,
        ordinal=ordinal,
        source=draft.source,
        prompt=draft.prompt,
        completion=draft.completion,
        extra=draft.extra,
    )


def _draft(row: Row) -> RowDraft:
    return RowDraft(prompt=row.prompt, completion=row.completion, source=row.source, extra=row.extra)


def _evidence(row: Row, place: int) -> ClusterRow:
    return ClusterRow(
        row_id=row.row_id,
        contributor_id=row.contributor_id,
        order=place,
        prompt=row.prompt,
        completion=row.completion,
    )


def _takes_its_place(first: Row, row: Row) -> bool:
    """A contributor may bring the same row to two Datanets: each has its own adapter and its own pool."""
    return first.datanet == row.datanet or first.contributor_id != row.contributor_id
