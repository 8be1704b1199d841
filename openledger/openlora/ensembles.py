"""Requests under several adapters at once: y = W x + sum of w_i B_i A_i x, with a weight w_i for each.

That is what PEFT's `add_weighted_adapter(..., combination_type="cat")` merges, without the merge. An ensemble's
identity is the digest of its members' digests and weights, so that nothing computed for one is found under another.
"""

import hashlib
import math
import struct
from collections.abc import Mapping

from openledger.core.errors import InvalidInput
from openledger.core.values import GenerationRequest

MAX_MEMBERS = 16
Members = tuple[tuple[str, float], ...]
Places = str | Mapping[str, str]  # where a request's adapter is; of an ensemble, where each is by digest


def check_ensemble(request: GenerationRequest) -> None:
    """Raises InvalidInput (`invalid_ensemble`)."""
    digests = [digest for digest, _ in request.ensemble]
    reason = ""
    if digests and request.adapter_digest:
        reason = "a request names an adapter or an ensemble, not both"
    elif len(digests) > MAX_MEMBERS:
        reason = f"{len(digests)} adapters at once, at most {MAX_MEMBERS}"
    elif "" in digests or len(set(digests)) < len(digests):
        reason = "an ensemble names each of its adapters once, and not the base"
    elif not all(math.isfinite(weight) for _, weight in request.ensemble):
        reason = "weights must be finite numbers"
    if reason:
        raise InvalidInput(reason, code="invalid_ensemble", param="ensemble")


def members_of(request: GenerationRequest) -> Members:
    """Digests and weights of all adapters that a request is answered under; none for the base alone."""
    alone = ((request.adapter_digest, 1.0),) if request.adapter_digest else ()
    return request.ensemble or alone


def home_of(request: GenerationRequest) -> str:
    """The adapter by which a request finds its replica: the one with the largest weight."""
    return max(members_of(request), key=lambda member: abs(member[1]), default=("", 0.0))[0]


def places_of(request: GenerationRequest, source: Places) -> Mapping[str, str]:
    return {request.adapter_digest: source} if isinstance(source, str) else source


def identity_of(request: GenerationRequest) -> str:
    """What tells a request's adapters from others: the one's digest, or the ensemble's."""
    if not request.ensemble:
        return request.adapter_digest
    parts = (digest.encode() + struct.pack("<d", weight) for digest, weight in sorted(request.ensemble))
    return "ensemble-" + hashlib.sha256(b"".join(parts)).hexdigest()
