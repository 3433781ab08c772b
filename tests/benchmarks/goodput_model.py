"""How much of a run's time is training that counts, by how often it fails and saves: what `auto` is held against."""

import math


def expected_goodput(interval_s: float, cost_s: float, mtbf_s: float, *, commit_s: float = 0.0,
                     recovery_s: float = 0.0) -> float:
    """Share of the wall time that is training which counts, in (0, 1] (Daly 2006, with W added to R).

    From one commit to the next there are T + C seconds to get through; whoever fails in between waits R and trains W
    again until he is back at the commit, and may fail in that too. commit_s: W. recovery_s: R.
    """
    back_s = (recovery_s + commit_s) / mtbf_s
    if back_s + (interval_s + cost_s) / mtbf_s > 700:  # beyond a double's exponent: nothing is ever committed
        return 0.0
    return interval_s / (mtbf_s * math.exp(back_s) * math.expm1((interval_s + cost_s) / mtbf_s))


def two_tier_goodput(interval_s: float, cost_s: float, storage_mtbf_s: float, *, worker_mtbf_s: float,
                     worker_recovery_s: float, commit_s: float = 0.0, recovery_s: float = 0.0) -> float:
    """The same, where most failures need no storage: a worker's, every M seconds in the mean, costs R seconds and no
    step. worker_mtbf_s: M. worker_recovery_s: R. The others are of the failures that go back to storage.

    A recovery that fails begins again, so it takes M(exp(R/M) - 1) seconds in the mean, and all that is done between
    two of the others takes exp(R/M) times as long (the two levels of Moody et al. 2010, Design, modeling, and
    evaluation of a scalable multi-level checkpointing system, SC10, the first of which loses nothing here).
    """
    longer = math.exp(worker_recovery_s / worker_mtbf_s)
    return expected_goodput(interval_s * longer, cost_s * longer, storage_mtbf_s, commit_s=commit_s * longer,
                            recovery_s=recovery_s) / longer
