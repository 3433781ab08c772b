"""How Ray is set up wherever this project starts it: on this machine and in a RayJob."""

USAGE_STATS = "RAY_USAGE_STATS_ENABLED"
RAY_SETTINGS = {
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # `ray job stop` leaves time for a last checkpoint; Ray's own 3 s do not suffice
    "RAY_health_check_period_ms": "1000",  # a killed node is missed after 5 of these; Ray's own 3 s make it 15 s
    # one behind a cut link after 5 of these and the pauses; Ray's own 10 s make it a minute
    "RAY_health_check_timeout_ms": "3000",
    USAGE_STATS: "0",  # else Ray tells its makers what runs, and Ray Data asks localhost:9090 every 10 s
}
"""Of the environment of a head and its nodes, wherever they run, for what users set nothing else."""
