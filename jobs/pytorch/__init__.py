"""The job for a PyTorch module of a user's own, and what PyTorch jobs share: the step, the process group,
explanations."""
