"""Texts: where they come from, how they become tokens and rows, and how people mistype them."""
