import pytest
import torch

from openledger.core.errors import InvariantBroken
from openledger.openlora.kv import KeyValueSlots
from openledger.openlora.packing import Piece, pack


class TestSlots:
    def test_the_lowest_free_one_is_taken(self) -> None:
        kv = KeyValueSlots(3, 8)
        assert [kv.allocate(), kv.allocate()] == [0, 1]
        kv.release(0)
        assert [kv.allocate(), kv.allocate()] == [0, 2]
        assert not kv.can_allocate()

    def test_taking_what_is_not_there_is_a_bug(self) -> None:
        kv = KeyValueSlots(0, 8)
        with pytest.raises(InvariantBroken):
            kv.allocate()

    def test_releasing_twice_is_a_bug(self) -> None:
        kv = KeyValueSlots(2, 8)
        kv.release(kv.allocate())
        with pytest.raises(InvariantBroken):
            kv.release(0)

    def test_wiping_leaves_other_slots_alone(self) -> None:
        kv = KeyValueSlots(2, 4)
        new = torch.ones(1, 2, 1, 3)
        keys, values = kv.layer(0, new, new)
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
        slot = kv.allocate()
        kv.release(slot, wipe=True)
        assert torch.equal(torch.isnan(values).any(-1).any(-1).any(-1), torch.tensor([False, True]))

    def test_bytes_of_a_token(self) -> None:
        kv = KeyValueSlots(2, 4)
        kv.layer(0, torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 5))
        kv.layer(1, torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3))
        assert kv.bytes_per_token() == 4 * (2 * 3 + 2 * 5 + 2 * 3 + 2 * 3)


class TestPacking:
    def test_single_tokens_come_first_by_adapter(self) -> None:
        pieces = [
            Piece(token_ids=[7, 8], slot=0, adapter="a"),
            Piece(token_ids=[1], start=4, slot=1, adapter="b"),
            Piece(token_ids=[2], start=9, slot=2),
            Piece(token_ids=[3], start=2, slot=3, adapter="a"),
        ]
        step = pack(pieces, KeyValueSlots(4, 16))
        assert step.order == (2, 3, 1, 0)
        assert step.input_ids.tolist() == [[2, 3, 1, 7, 8]]
        assert step.position_ids.tolist() == [[9, 2, 4, 0, 1]]
        assert step.kept_rows.tolist() == [0, 1, 2, 4]
        assert step.stored_slots.tolist() == [2, 3, 1, 0, 0]

    def test_pieces_without_logits_keep_no_row(self) -> None:
        step = pack([Piece(token_ids=[7, 8], slot=0, keep=0), Piece(token_ids=[1, 2, 3], keep=2)], KeyValueSlots(1, 4))
        assert step.kept_rows.tolist() == [3, 4]
        assert step.stored_rows.tolist() == [0, 1]

    @pytest.mark.parametrize(("slots", "in_place"), [((0, 1, 2), True), ((5, 1), False), ((40,), False), ((0,), True)])
    def test_keys_are_read_in_place_where_slots_lie_close(self, slots: tuple[int, ...], in_place: bool) -> None:
        step = pack([Piece(token_ids=[1], start=2, slot=slot) for slot in slots], KeyValueSlots(41, 4))
        assert step.singles is not None
        assert step.singles.in_place is in_place

    def test_masks_hide_what_is_not_stored_or_out_of_the_window(self) -> None:
        step = pack(
            [Piece(token_ids=[1], start=start, slot=slot) for slot, start in enumerate((0, 3))], KeyValueSlots(2, 4)
        )
        assert step.singles is not None
        assert torch.isfinite(step.singles.mask(None)[:, 0, 0]).tolist() == [[True, False, False, False], [True] * 4]
        assert torch.isfinite(step.singles.mask(2)[1, 0, 0]).tolist() == [False, False, True, True]
