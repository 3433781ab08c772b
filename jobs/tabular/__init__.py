"""The job for tables: a network for columns of numbers, categories and dates that predicts numbers or a class."""
