"""The error tree: what can go wrong, told so that a person can mend it.

Owns every error this package raises on purpose. Knows nothing of HTTP or the command line; they read
`http_status` and `exit_code` from the class.

    OpenLedgerError
    ├── InvalidInput (ValueError)          400   exit 2   the caller sent something that can't be used
    ├── Unauthenticated (PermissionError)  401   exit 3   no key, or one that is not known
    ├── InsufficientFunds (ValueError)     402   exit 4   the balance doesn't cover what was asked
    ├── Forbidden (PermissionError)        403   exit 5   known, but not allowed
    ├── NotFound (LookupError)             404   exit 6   no such thing
    ├── Conflict (ValueError)              409   exit 7   the same key or id with other content
    ├── TooLarge (ValueError)              413   exit 8   over a stated limit
    ├── TooManyRequests (RuntimeError)     429   exit 11  more than one caller's part: later
    ├── Corrupt (RuntimeError)             422   exit 9   stored or received bytes are not what they should be
    ├── Unavailable (RuntimeError)         503   exit 10  try again: a part isn't there now
    └── Interrupted (RuntimeError)         503   exit 130 stopped by the user
"""

from collections.abc import Callable
from typing import ClassVar, TypeVar

Result = TypeVar("Result")


class OpenLedgerError(Exception):
    """One thing that went wrong.

    `code` is stable and machine-readable (`insufficient_funds`), `message` says what happened, `param` names the
    input at fault, `fix` says what to do about it.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None, fix: str | None = None):
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.fix = fix

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders in Ray: rebuild from all four parts, not from `args` alone."""
        return (_rebuild, (type(self), self.message, self.code, self.param, self.fix))

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, str | None]:
        """The one shape in which errors leave the process: HTTP bodies, `--json` output, logs."""
        return {
            "type": self.default_code,
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "fix": self.fix,
        }


def _rebuild(
    cls: type[OpenLedgerError], message: str, code: str, param: str | None, fix: str | None
) -> OpenLedgerError:
    return cls(message, code=code, param=param, fix=fix)


def _rebuild_later(
    message: str, code: str | None, param: str | None, fix: str | None, retry_after_s: int
) -> OpenLedgerError:
    return TooManyRequests(message, code=code, param=param, fix=fix, retry_after_s=retry_after_s)


class InvalidInput(OpenLedgerError, ValueError):
    http_status, exit_code, default_code = 400, 2, "invalid_input"


class Unauthenticated(OpenLedgerError, PermissionError):
    http_status, exit_code, default_code = 401, 3, "unauthenticated"


class InsufficientFunds(OpenLedgerError, ValueError):
    http_status, exit_code, default_code = 402, 4, "insufficient_funds"


class Forbidden(OpenLedgerError, PermissionError):
    http_status, exit_code, default_code = 403, 5, "forbidden"


class NotFound(OpenLedgerError, LookupError):
    http_status, exit_code, default_code = 404, 6, "not_found"


class Conflict(OpenLedgerError, ValueError):
    http_status, exit_code, default_code = 409, 7, "conflict"


class TooLarge(OpenLedgerError, ValueError):
    http_status, exit_code, default_code = 413, 8, "too_large"


class TooManyRequests(OpenLedgerError, RuntimeError):
    """`retry_after_s` says when it may be worth asking again; over HTTP it is also the header Retry-After."""

    http_status, exit_code, default_code = 429, 11, "too_many_requests"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        fix: str | None = None,
        retry_after_s: int = 1,
    ):
        super().__init__(message, code=code, param=param, fix=fix)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_later, (self.message, self.code, self.param, self.fix, self.retry_after_s))


class Corrupt(OpenLedgerError, RuntimeError):
    http_status, exit_code, default_code = 422, 9, "corrupt"


class Unavailable(OpenLedgerError, RuntimeError):
    http_status, exit_code, default_code = 503, 10, "unavailable"


class Interrupted(OpenLedgerError, RuntimeError):
    http_status, exit_code, default_code = 503, 130, "interrupted"


def idempotency_conflict(what: str = "request") -> Conflict:
    """The refusal of an idempotency key that stands for something else already."""
    return Conflict(
        f"this idempotency key was used for another {what}",
        code="idempotency_conflict",
        param="idempotency_key",
        fix=f"send a new key for a new {what}",
    )


class InvariantBroken(AssertionError):
    """A bug of ours, never the caller's fault. Raised also under `python -O`."""


def outcome(function: Callable[..., Result], *arguments: object) -> "Result | OpenLedgerError":
    """What a call gives, or the error of ours that it ends in: for each of many that one call stands for."""
    try:
        return function(*arguments)
    except OpenLedgerError as error:
        return error


def invariant(condition: bool, message: str) -> None:
    """Raises InvariantBroken with `message` unless `condition` holds."""
    if not condition:
        raise InvariantBroken(message)
