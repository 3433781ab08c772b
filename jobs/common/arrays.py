"""`Array`: a NumPy array whose shape and type only its reader knows, as a column of data, a tensor of a request."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
