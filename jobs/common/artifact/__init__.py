"""Contract 5: what training hands to serving, and proof of what it is."""
