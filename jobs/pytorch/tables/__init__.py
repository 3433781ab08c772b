"""What PyTorch jobs on tables share: the pass, and the trained module as it answers."""
