"""The life of a run, from the command line to the exit code, and the folder that it leaves."""
