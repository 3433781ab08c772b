"""An ONNX graph whose weights, and what its matrix products and convolutions take in, are 8 bits:
a quarter of the size.

The ranges are those of some training rows, found once (static quantisation), and not those of each batch (dynamic):
else what else is in a batch would change a row's answer, which is to be a function of the request alone. On the models
that were tried (tests/benchmarks/optimise.py) both keep the accuracy;
in convolutions the dynamic kind is slower than float32.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import logging
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPERATORS = ("Conv", "MaxPool", "Gemm", "MatMul", "Gather")
"""Not the normalisation of inputs, nor the softmax: they cost little, and 8 bits are too few for a probability."""


def quantised(graph: bytes, batches: Iterable[Mapping[str, object]]) -> bytes:
    """batches: the graph's inputs, of rows that stand for all."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> Any:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory(prefix="trainyard-int8-") as folder, _quiet():
        plain, ready, made = (Path(folder, name) for name in ("plain.onnx", "ready.onnx", "made.onnx"))
        # files: a graph that is given as an object is changed, its numbers moved to another file
        plain.write_bytes(graph)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        # weights of 7 bits: on CPUs without VNNI a sum of two products of 8 bits does not fit into its 16, and another
        # accuracy than the one measured here would be served there, without a word
        quantize_static(ready, made, Reader(), op_types_to_quantize=list(OPERATORS), per_channel=True,
                        reduce_range=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        extra_options={"MatMulConstBOnly": True})
        return made.read_bytes()


@contextmanager
def _quiet() -> Generator[None]:
    """ONNX Runtime's tools warn through the root logger of what is done here on purpose."""
    log = logging.getLogger()
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
