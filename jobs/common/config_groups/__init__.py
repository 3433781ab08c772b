"""The groups of a config that every job has, and what groups are made of: those that have modules of their own."""
