"""Waiting for actors: their values, and their errors as ours, or in words."""

from typing import Any

from openledger.core.errors import OpenLedgerError, Unavailable


async def answered(reference: Any) -> Any:
    """The value of a Ray reference; errors of ours come out as themselves, Ray's as Unavailable."""
    import ray.exceptions

    try:
        return await reference
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OpenLedgerError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise Unavailable(f"a part of the platform is restarting: {error}", code="actor_unavailable") from error


def reason_of(error: Exception) -> str:
    """An error's code and words, where they are ours; its type, where they may say anything."""
    cause = getattr(error, "cause", None) or error
    return f"{cause.code}: {cause.message}" if isinstance(cause, OpenLedgerError) else type(cause).__name__
