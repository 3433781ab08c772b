"""Contract 2: prepared blocks, their splits, the order of their rows, and the loader that reads them."""
