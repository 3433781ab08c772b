"""What an endpoint answers with instead of a result: HTTP's status or gRPC's code, and a message (over HTTP,
`{"error": …}`).

    RefusedError                    status, code
    ├── BadRequestError             400  INVALID_ARGUMENT    the request is not what the model takes
    │   └── ParameterError          400  INVALID_ARGUMENT    and says which parameter
    ├── UnauthorisedError           401  UNAUTHENTICATED     no key, or one that is not known
    ├── ForbiddenError              403  PERMISSION_DENIED   a page of another origin, or a name that is not loopback's
    ├── UnknownModelError           404  NOT_FOUND
    ├── MethodError                 405  UNIMPLEMENTED       with Allow
    ├── TooLargeError               413  RESOURCE_EXHAUSTED
    ├── CompressedError             415  INVALID_ARGUMENT    with Accept-Encoding
    ├── RateLimitError              429  RESOURCE_EXHAUSTED  with Retry-After
    ├── OverloadedError             503  UNAVAILABLE         with Retry-After
    ├── DeadlineError               504  DEADLINE_EXCEEDED
    ├── GoneError                   503  UNAVAILABLE         with Retry-After
    ├── NotLoadedError              500  INTERNAL            the model's artifact, or its answer, is not as it should be
    └── ModelError                  500  INTERNAL            our own mistake, without details
"""

from collections.abc import Sequence
from typing import ClassVar


class RefusedError(Exception):
    """cause: of the metric `errors`. retry_after_s: when it may be tried again."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL"
    cause: ClassVar[str] = "internal"
    retry_after_s: float | None = None
    param: str | None = None
    """Which parameter of a request for text is wrong."""


class BadRequestError(RefusedError):
    status, code, cause = 400, "INVALID_ARGUMENT", "bad_request"


class ParameterError(BadRequestError):
    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)  # it alone: a process that unpickles it calls with that
        self.param = param


class UnauthorisedError(RefusedError):
    status, code, cause = 401, "UNAUTHENTICATED", "key"


class ForbiddenError(RefusedError):
    status, code, cause = 403, "PERMISSION_DENIED", "browser"


class UnknownModelError(RefusedError):
    status, code, cause = 404, "NOT_FOUND", "unknown"


class MethodError(RefusedError):
    status, code, cause = 405, "UNIMPLEMENTED", "bad_request"

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(f"this path takes {' and '.join(methods)}")
        self.methods = methods


class TooLargeError(RefusedError):
    status, code, cause = 413, "RESOURCE_EXHAUSTED", "too_large"


class CompressedError(RefusedError):
    status, code, cause = 415, "INVALID_ARGUMENT", "bad_request"


class RateLimitError(RefusedError):
    """One caller has asked too often."""

    status, code, cause = 429, "RESOURCE_EXHAUSTED", "rate_limit"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(RefusedError):
    """The endpoint has more to do than it can."""

    status, code, cause = 503, "UNAVAILABLE", "overloaded"
    retry_after_s = 1.0


class GoneError(RefusedError):
    """Replicas died with the request."""

    status, code, cause = 503, "UNAVAILABLE", "replica_died"
    retry_after_s = 1.0


class DeadlineError(RefusedError):
    status, code, cause = 504, "DEADLINE_EXCEEDED", "deadline"


class NotLoadedError(RefusedError):
    """The log says why."""

    cause = "load"


class ModelError(RefusedError):
    """Our own mistake: what it was is in the log."""

    status, code, cause = 500, "INTERNAL", "model"
