"""What several unit tests share."""

from collections.abc import Iterator

import pytest

from tests.s3 import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server, for the tests of one file."""
    with s3_server() as endpoint:
        yield endpoint
