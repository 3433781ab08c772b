"""What every job shares, and no framework: nothing here imports torch, tensorflow or transformers."""
