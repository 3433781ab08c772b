"""Contract 5: what training hands to serving, and proof of what it is."""



def __getattr__(name: str) -> object:
    """Gives `open_artifact` by the path that model cards of earlier versions name."""
    if name != "open_artifact":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobs.common.artifact.artifact import open_artifact  # not before it is asked for: an import does nothing

    return open_artifact
