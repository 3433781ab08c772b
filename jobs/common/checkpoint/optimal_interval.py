"""How much of a run's time is training that counts, by how often it fails and how often it saves:
the model behind `auto`.

A snapshot is taken every T seconds of training and costs training C seconds; it counts from the moment, W seconds
later, at which it is committed. Failures come at random, M seconds apart in the mean. After one it takes R seconds
until training goes on, from the last snapshot that counts.

Young 1974 (A first order approximation to the optimum checkpoint interval, CACM 17(9)): T = sqrt(2 C M). Daly 2006 (A
higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3)) has more of the series, and the
time that a run takes. Both count a checkpoint from the moment it is taken; here a failure also costs the W seconds that
were trained while it was written, which adds to R and moves the best T by nothing.
"""

import math


def mean_time_between_failures_s(per_node_h: float, num_nodes: int) -> float:
    """Of a run on so many nodes, each of which fails after so many hours in the mean: any of them ends the step."""
    return per_node_h * 3600 / num_nodes


def best_interval_s(cost_s: float, mtbf_s: float) -> float:
    """Seconds of training between snapshots that lose the least time (Daly 2006).
    cost_s: of one snapshot, to training."""
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    part = cost_s / (2 * mtbf_s)
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - cost_s
