from collections.abc import Iterator

import pytest

from tests.integration.serving.shared import Endpoint, serving


@pytest.fixture(scope="package")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with serving(tmp_path_factory.mktemp("storage")) as made:
        yield made
