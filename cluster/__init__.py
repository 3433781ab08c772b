"""Where work runs: connection, resources, storage, network, authentication. `python -m cluster up|status|down`."""

from cluster.core.shadows import check

check()
