"""Contract 6: the registry of models, MLflow, and the command `python -m jobs.common.registry`."""
