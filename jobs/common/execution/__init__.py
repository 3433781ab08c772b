"""Who runs a job: the controller, its workers, and the executors that start them (local, Ray)."""
