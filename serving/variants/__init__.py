"""Smaller and faster variants of an artifact, and how they are judged."""
