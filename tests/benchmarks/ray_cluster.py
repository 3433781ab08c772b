"""A Ray cluster of this machine for the length of a block, which processes started meanwhile join."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.local import cluster as local


@contextmanager
def running(cpus: int) -> Iterator[local.LocalCluster]:
    """Beside any cluster that is up; one node with so many CPUs, whatever the machine has."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="trainyard-home-") as home:
        os.environ["TRAINYARD_HOME"] = home
        try:
            cluster = local.up(cpus_per_node=cpus)
            os.environ.update(cluster.environment())
            yield cluster
        finally:
            local.down()
            os.environ.clear()
            os.environ.update(before)
