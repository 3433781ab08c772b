"""What every part of serving stands on: its errors and its settings."""
