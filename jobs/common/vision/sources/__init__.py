"""What pictures can be read from, one file a format; `jobs.common.vision.dataset` finds out which it is."""
