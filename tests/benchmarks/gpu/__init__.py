"""What is measured on one GPU, and in miniature on CPUs."""
