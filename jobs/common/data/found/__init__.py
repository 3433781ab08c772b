"""What is found in a source: which files are which split, what is left out, the same content again, odd rows."""
