"""The Transformer job: classifying and generating text, `python -m jobs.transformer`.
See README.md beside this file."""
