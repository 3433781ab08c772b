"""Contract 4: what a checkpoint is, and how it is written, found, fenced and scheduled."""
