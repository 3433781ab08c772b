"""Text generation: its protocol, and the batch that requests join and leave between tokens."""
