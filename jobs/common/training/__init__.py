"""What the author of a job sees: the job, its session, and what a training loop shares with it."""
