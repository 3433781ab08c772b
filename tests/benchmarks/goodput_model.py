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
