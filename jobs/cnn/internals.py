"""What the job uses of TensorFlow that is private or undocumented. Read in TensorFlow 2.21.0.

tests/unit/test_internals.py holds each symbol.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportAttributeAccessIssue=false

from typing import Any

from jobs.cnn.framework import tf


def has_context() -> bool:
    """Whether TensorFlow has made the context in which threads and devices are fixed. Nothing public says so."""
    return _eager().context()._initialized


def drop_context() -> None:
    """Gives up the context with everything in it: the public way, another process, takes the time of the imports."""
    _eager()._reset_context()


def _eager() -> Any:
    # not at the top, where it would come before what `framework` loads first
    from tensorflow.python.eager import context

    return context


def profile_in(data: bytes) -> Any:
    """What TensorFlow's profiler has written: an XSpace, the message that public tools draw pages of."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace.FromString(data)


def set_determinism(deterministic: bool) -> None:
    """Public is only the way to turn it on, and a worker's process outlives the generation that wanted it."""
    from tensorflow.python.framework import config

    if deterministic:
        tf.config.experimental.enable_op_determinism()
    else:
        config.disable_op_determinism()
