"""What an endpoint answers with instead of a result: an HTTP status, and a message in the protocol's form `{"error": …}`.

    RefusedError                    status
    ├── BadRequestError             400  the request is not what the model takes
    ├── UnauthorisedError           401  no key, or one that is not known
    ├── UnknownModelError           404
    ├── MethodError                 405  with Allow
    ├── TooLargeError               413
    ├── RateLimitError              429  with Retry-After
    ├── OverloadedError             503  with Retry-After
    ├── DeadlineError               504
    ├── GoneError                   503  with Retry-After
    └── ModelError                  500  our own mistake, without details
"""

from collections.abc import Sequence
from typing import ClassVar


class RefusedError(Exception):
    """cause: of the metric `errors`. retry_after_s: when it may be tried again."""

    status: ClassVar[int] = 500
    cause: ClassVar[str] = "internal"
    retry_after_s: float | None = None


class BadRequestError(RefusedError):
    status, cause = 400, "bad_request"


class UnauthorisedError(RefusedError):
    status, cause = 401, "key"


class UnknownModelError(RefusedError):
    status, cause = 404, "unknown"


class MethodError(RefusedError):
    status, cause = 405, "bad_request"

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(f"this path takes {' and '.join(methods)}")
        self.methods = methods


class TooLargeError(RefusedError):
    status, cause = 413, "too_large"


class RateLimitError(RefusedError):
    """One caller has asked too often."""

    status, cause = 429, "rate_limit"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(RefusedError):
    """The endpoint has more to do than it can."""

    status, cause = 503, "overloaded"
    retry_after_s = 1.0


class GoneError(RefusedError):
    """Replicas died with the request."""

    status, cause = 503, "replica_died"
    retry_after_s = 1.0


class DeadlineError(RefusedError):
    status, cause = 504, "deadline"


class ModelError(RefusedError):
    """Our own mistake: what it was is in the log."""

    status, cause = 500, "model"
