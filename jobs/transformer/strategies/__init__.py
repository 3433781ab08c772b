"""How weights, gradients and moments are spread over the workers: one table, and a class for each way."""
