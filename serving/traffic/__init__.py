"""How requests reach a version: routing, batches, limits, canaries, shadows and their metrics."""
