"""What every part of the project stands on: errors, storage, documents, signals, network, keys,
and the control store."""
