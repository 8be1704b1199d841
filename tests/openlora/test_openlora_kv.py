import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvariantBroken
from openledger.openlora.kv import KeyValueBlocks, block_key, root_key
from openledger.openlora.packing import Piece, pack

ROOT = root_key("base", "adapter", "tenant")


def _stored(kv: KeyValueBlocks, *keys: bytes) -> list[int]:
    """Blocks with these keys, computed and left."""
    blocks = kv.allocate(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        kv.publish(block, key)
    kv.release(blocks)
    return blocks


class TestBlocks:
    def test_are_handed_out_once(self) -> None:
        kv = KeyValueBlocks(3)
        blocks = [*kv.allocate(2), *kv.allocate(1)]
        assert sorted(blocks) == [0, 1, 2]
        assert not kv.can_allocate(1)

    def test_taking_what_is_not_there_is_a_bug(self) -> None:
        with pytest.raises(InvariantBroken):
            KeyValueBlocks(1).allocate(2)

    def test_releasing_twice_is_a_bug(self) -> None:
        kv = KeyValueBlocks(2)
        blocks = kv.allocate(1)
        kv.release(blocks)
        with pytest.raises(InvariantBroken):
            kv.release(blocks)

    def test_wiping_leaves_other_blocks_alone(self) -> None:
        kv = KeyValueBlocks(2)
        new = torch.ones(1, 2, 1, 3)
        keys, values = kv.layer(0, new, new)
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
        [block] = kv.allocate(1)
        kv.release([block], wipe=True)
        assert bool(torch.isfinite(values[block]).all())
        assert bool(torch.isnan(values[1 - block]).all())

    def test_bytes_of_a_token(self) -> None:
        kv = KeyValueBlocks(2)
        kv.layer(0, torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 5))
        kv.layer(1, torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3))
        assert kv.bytes_per_token() == 4 * (2 * 3 + 2 * 5 + 2 * 3 + 2 * 3)


class TestFinding:
    def test_what_was_published_is_found_after_it_was_left(self) -> None:
        kv = KeyValueBlocks(4)
        blocks = _stored(kv, b"a", b"b")
        assert kv.find([b"a", b"b", b"c"]) == blocks
        assert kv.find([b"c", b"a"]) == []

    def test_a_found_block_is_not_handed_out_while_held(self) -> None:
        kv = KeyValueBlocks(2)
        [block] = _stored(kv, b"a")
        kv.hold([block])
        assert kv.num_free() == 1
        assert kv.allocate(1) != [block]

    def test_the_least_recently_left_is_given_up_first(self) -> None:
        kv = KeyValueBlocks(2)
        _stored(kv, b"a")
        _stored(kv, b"b")
        kv.allocate(1)
        assert (kv.find([b"a"]), len(kv.find([b"b"]))) == ([], 1)

    def test_of_one_prompt_its_end_is_given_up_first(self) -> None:
        kv = KeyValueBlocks(2)
        blocks = _stored(kv, b"a", b"b")
        kv.allocate(1)
        assert kv.find([b"a", b"b"]) == blocks[:1]

    def test_a_wiped_block_is_not_found(self) -> None:
        kv = KeyValueBlocks(2)
        [block] = kv.allocate(1)
        kv.publish(block, b"a")
        kv.release([block], wipe=True)
        assert kv.find([b"a"]) == []

    def test_of_two_with_one_content_the_first_stays(self) -> None:
        kv = KeyValueBlocks(2)
        first, second = kv.allocate(2)
        kv.publish(first, b"a")
        kv.publish(second, b"a")
        kv.release([second])
        assert kv.find([b"a"]) == [first]
        assert kv.num_known() == 1

    @given(st.lists(st.tuples(st.sampled_from(["take", "leave", "hold"]), st.integers(0, 5)), max_size=60))
    def test_no_block_is_ever_lost(self, moves: list[tuple[str, int]]) -> None:
        kv = KeyValueBlocks(6)
        held: list[int] = []
        for move, key in moves:
            name = bytes([key])
            if move == "take" and kv.can_allocate(1):
                held += kv.allocate(1)
                kv.publish(held[-1], name)
            elif move == "hold" and (found := kv.find([name])):
                kv.hold(found)
                held += found
            elif move == "leave" and held:
                kv.release([held.pop(key % len(held))])
            assert kv.num_free() == 6 - len(set(held))
        kv.release(held)
        assert kv.num_free() == 6


class TestKeys:
    def test_differ_by_base_adapter_tenant_and_every_token_before(self) -> None:
        roots = {
            ROOT,
            root_key("base", "adapter", ""),
            root_key("base", "", "tenant"),
            root_key("x", "adapter", "tenant"),
        }
        roots |= {root_key("b", "aseadapter", "tenant"), root_key("base", "adaptert", "enant")}
        assert len(roots) == 6
        assert block_key(block_key(ROOT, [1]), [2]) != block_key(block_key(ROOT, [3]), [2])
        assert block_key(ROOT, [1, 2]) == block_key(ROOT, (1, 2))


class TestPacking:
    def test_short_pieces_come_first_by_adapter(self) -> None:
        pieces = [
            Piece(token_ids=range(40), blocks=[0, 1, 2], adapter="a"),
            Piece(token_ids=[101], start=4, blocks=[3], adapter="b"),
            Piece(token_ids=[102], start=17, blocks=[5, 4]),
            Piece(token_ids=[103, 104], start=2, blocks=[6], adapter="a"),
        ]
        step = pack(pieces, KeyValueBlocks(8))
        assert step.order == (2, 3, 1, 0)
        assert step.input_ids.tolist() == [[102, 103, 104, 101, *range(40)]]
        assert step.position_ids.tolist() == [[17, 2, 3, 4, *range(40)]]
        assert step.kept_rows.tolist() == [0, 2, 3, 43]
        assert step.slots.tolist() == [4 * 16 + 1, 6 * 16 + 2, 6 * 16 + 3, 3 * 16 + 4, *range(40)]
        assert step.short_rows is not None
        assert step.short_rows.tables.tolist() == [[5, 4], [6, 0], [3, 0]]
        assert step.short_rows.row_tables.tolist() == [0, 1, 1, 2]
        assert step.short_rows.lengths.tolist() == [18, 3, 4, 5]

    def test_pieces_without_logits_keep_no_row(self) -> None:
        pieces = [Piece(token_ids=[7, 8], blocks=[0], keep=0), Piece(token_ids=[1, 2, 3], keep=2)]
        step = pack(pieces, KeyValueBlocks(1))
        assert step.kept_rows.tolist() == [3, 4]
        assert step.slots.tolist() == [0, 1, -1, -1, -1]
