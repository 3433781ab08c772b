"""The training jobs, one package a job: `python -m jobs.<name>`."""
