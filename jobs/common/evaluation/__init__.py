"""Metrics of a model on rows that it did not train on."""
