"""What a finished model says of new data: every row once, in pieces that any process may do, and do again."""
