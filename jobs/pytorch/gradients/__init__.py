"""How the gradients of the shards are summed over workers, while the backward pass runs."""
