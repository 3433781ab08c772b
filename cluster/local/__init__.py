"""A Ray cluster of this machine: its start, its processes and its end."""
