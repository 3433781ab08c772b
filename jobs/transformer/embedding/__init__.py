"""One vector for each text: what of a model it is, and how it is computed."""
