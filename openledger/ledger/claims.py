"""Payouts that are claimed on an EVM chain: OpenZeppelin's `StandardMerkleTree` of (address, uint256) in wei.

    leaf    keccak256(keccak256(abi.encode(address, amount)))
    node    keccak256 of its two children, the smaller first
    tree    node i has the children 2i + 1 and 2i + 2; the leaves, sorted, stand at the end, the smallest last

The dump is the package's `standard-v1`: `StandardMerkleTree.load` reads it. A contract that holds the root pays each
leaf once (for example OpenZeppelin's MerkleProof with a bitmap of what was claimed). 1 OPEN is 10^18 wei, so 1
nano-OPEN is 10^9. Of a ledger in a currency the amounts are millionths as they are, for a token with six decimals
(USDC and EURC have six). Needs a compiled keccak (`openledger[claims]`). Source: github.com/OpenZeppelin/merkle-tree.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from openledger.core.errors import Corrupt, InvalidInput, Unavailable
from openledger.core.money import OPEN, SUPPLY_NANO, Unit

FORMAT = "standard-v1"
ENCODING = ["address", "uint256"]
WEI_PER_NANO = 10**9
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


class ClaimTree:
    """The tree over `amounts_nano` by address. Raises InvalidInput for what is no address or amount, or comes twice."""

    def __init__(self, amounts_nano: Mapping[str, int], unit: Unit = OPEN):
        if not amounts_nano:
            raise InvalidInput("there is nothing to claim", code="no_claims", param="amounts")
        keccak = keccak_256()
        self.amounts_nano = {plain(address): amount for address, amount in amounts_nano.items()}
        if len(self.amounts_nano) != len(amounts_nano):
            raise InvalidInput("an address comes twice", code="address_twice", param="address")
        self.unit, self._wei = unit, wei_of(unit)
        leaves = [leaf_of(address, amount, keccak, unit) for address, amount in self.amounts_nano.items()]
        self._tree = _nodes(sorted(leaves), keccak)
        places = {leaf: place for place, leaf in enumerate(self._tree[len(leaves) - 1 :], start=len(leaves) - 1)}
        self._places = dict(zip(self.amounts_nano, map(places.__getitem__, leaves), strict=True))

    @property
    def root(self) -> str:
        return _hex(self._tree[0])

    def proof(self, address: str) -> list[str]:
        """What the contract needs beside address and amount. Raises InvalidInput for an address without a claim."""
        place = self._places.get(plain(address))
        if place is None:
            raise InvalidInput(f"{address} has nothing to claim", code="no_claims", param="address")
        path = []
        while place:
            path.append(_hex(self._tree[place + 1 if place % 2 else place - 1]))
            place = (place - 1) // 2
        return path

    def dump(self) -> dict[str, Any]:
        """The value that `StandardMerkleTree.load` takes."""
        values = [
            {"value": [address, str(amount * self._wei)], "treeIndex": self._places[address]}
            for address, amount in self.amounts_nano.items()
        ]
        return {
            "format": FORMAT,
            "leafEncoding": ENCODING,
            "tree": [_hex(node) for node in self._tree],
            "values": values,
        }


def load_claims(dump: Mapping[str, Any], unit: Unit = OPEN) -> ClaimTree:
    """The tree of a dump, built again. Raises Corrupt where it isn't what its values make."""
    try:
        amounts = {value["value"][0]: _nano(value["value"][1], unit) for value in dump["values"]}
        tree = ClaimTree(amounts, unit)
        same = len(amounts) == len(dump["values"]) and tree.dump() == {
            **dump,
            "values": [
                {"value": [plain(item["value"][0]), item["value"][1]], "treeIndex": item["treeIndex"]}
                for item in dump["values"]
            ],
        }
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Corrupt(f"not a dump of claims: {error}", code="malformed_claims", param="claims") from error
    if not same:
        raise Corrupt("the tree isn't the one that its values make", code="wrong_claims", param="claims")
    return tree


def verify_claim(root: str, address: str, amount_nano: int, proof: Sequence[str], unit: Unit = OPEN) -> bool:
    """Whether `proof` leads from this claim to `root`, as the contract reckons it."""
    keccak = keccak_256()
    node = leaf_of(plain(address), amount_nano, keccak, unit)
    for item in proof:
        node = _parent(node, bytes.fromhex(item[2:]), keccak)
    return _hex(node) == root


def wei_of(unit: Unit) -> int:
    """What the smallest part of `unit` is in the token's own."""
    return WEI_PER_NANO if unit == OPEN else 1


def leaf_of(address: str, amount_nano: int, keccak: Callable[[bytes], Any], unit: Unit = OPEN) -> bytes:
    if type(amount_nano) is not int or not 0 < amount_nano <= SUPPLY_NANO:
        raise InvalidInput(f"{amount_nano!r} can't be claimed", code="invalid_amount", param="amount_nano")
    encoded = bytes(12) + bytes.fromhex(address[2:]) + (amount_nano * wei_of(unit)).to_bytes(32, "big")
    return bytes(keccak(keccak(encoded).digest()).digest())


def plain(address: str) -> str:
    """`address` in lower case. Raises InvalidInput for no address, or for one whose capitals aren't those of EIP-55."""
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise _no_address(address)
    lower = address.lower()
    if address[2:] not in (lower[2:], lower[2:].upper()) and address != checksummed(lower):
        raise _no_address(address)
    return lower


def checksummed(address: str) -> str:
    """`address` (lower case) with the capitals of EIP-55."""
    digits = keccak_256()(address[2:].encode()).hexdigest()
    letters = zip(address[2:], digits, strict=False)
    return "0x" + "".join(letter.upper() if digit > "7" else letter for letter, digit in letters)


def keccak_256() -> Callable[[bytes], Any]:
    """Raises Unavailable where no compiled one is installed."""
    try:
        import sha3
    except ImportError as error:
        raise Unavailable(
            "claims need keccak256", code="keccak_missing", fix="pip install 'openledger[claims]'"
        ) from error
    keccak: Callable[[bytes], Any] = sha3.keccak_256
    return keccak


def _nodes(leaves: Iterable[bytes], keccak: Callable[[bytes], Any]) -> list[bytes]:
    sorted_leaves = list(leaves)
    first = len(sorted_leaves) - 1
    tree = [b""] * first + sorted_leaves[::-1]
    for place in range(first - 1, -1, -1):
        left, right = tree[2 * place + 1], tree[2 * place + 2]
        tree[place] = keccak(left + right if left < right else right + left).digest()
    return tree


def _parent(one: bytes, other: bytes, keccak: Callable[[bytes], Any]) -> bytes:
    return bytes(keccak(one + other if one < other else other + one).digest())


def _nano(wei: str, unit: Unit) -> int:
    amount, rest = divmod(int(wei), wei_of(unit))
    if rest:
        raise ValueError(f"{wei} wei is no whole nano-OPEN")
    return amount


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _no_address(address: object) -> InvalidInput:
    return InvalidInput(
        f"{address!r} is no address",
        code="invalid_address",
        param="address",
        fix="write 0x and 40 hex digits, in lower case or with the capitals of EIP-55",
    )
