"""What the PyTorch jobs share: the process group, the loop's bookkeeping, schedules, optimisers. Their loops stay their own."""
