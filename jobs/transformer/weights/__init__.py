"""Where a model's weights come from: an artifact's files, or those of a base with updates of low rank to them."""
