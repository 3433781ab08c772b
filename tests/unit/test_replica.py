"""serving/replica.py: a batch for which there is no memory fails alone, and the replica goes on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")  # Ray Serve's, of Pydantic


class Hungry:
    """A predictor that has room for four rows."""

    def decode(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return inputs["x"]

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        if len(rows) > 4:
            return np.empty(1 << 60)  # NumPy raises its own kind of MemoryError
        return rows + 1

    def encode(self, predicted: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        return {"y": predicted}


def test_who_asks_for_more_than_there_is_memory_for_is_told_and_the_next_is_answered() -> None:
    from serving.replica import answers

    predictor: Any = Hungry()
    small, large = {"x": np.zeros(3)}, {"x": np.zeros(5)}
    (failed,) = answers(predictor, [large])
    assert isinstance(failed, ModelError) and str(failed) == "the model failed: see the replica's log"
    (found,) = answers(predictor, [small])
    assert not isinstance(found, Exception)
    np.testing.assert_array_equal(found["y"], np.ones(3))
