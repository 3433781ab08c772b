"""TensorFlow and Keras, imported in half the time: `from jobs.cnn.framework import keras, tf`.

Keras imports scikit-learn, matplotlib and pandas if it finds them, for wrappers and plots that nobody here uses. They
are kept from it while it is imported, and are there again afterwards.
This is the only module that may import TensorFlow first in a process.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import cast

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow",
          "TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # else TensorFlow takes the whole card
_UNUSED = ("sklearn", "matplotlib", "pandas")


@contextmanager
def _without(names: tuple[str, ...]) -> Generator[None]:
    """Imports of these packages fail; those that were imported before stay."""
    hidden = [name for name in names if name not in sys.modules]
    modules = cast(dict[str, object], sys.modules)
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


@contextmanager
def _silent() -> Generator[None]:
    """What C++ writes to standard error is shown only if the block fails: TensorFlow greets,
    whatever its own settings say."""
    with tempfile.TemporaryFile() as heard:
        sys.stderr.flush()
        own = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            yield
        except BaseException:
            heard.seek(0)
            os.write(own, heard.read())
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)


def _agree_with_triton() -> None:
    """Loads triton's library, where triton is installed (PyPI's torch brings it), before TensorFlow's.

    A process that loads it after TensorFlow ends with a segmentation fault (triton 3.7.1, TensorFlow 2.21.0), and
    torch._dynamo does so at the first optimiser step.
    Where TensorFlow is there already, triton is hidden: PyTorch does without it.
    """
    if "tensorflow" in sys.modules:
        cast(dict[str, object], sys.modules).setdefault("triton", None)
    elif importlib.util.find_spec("triton"):
        with suppress(ImportError):  # what cannot be loaded now cannot be loaded later either
            importlib.import_module("triton._C.libtriton")


for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)
_agree_with_triton()
with _without(_UNUSED), _silent():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
