"""The MLP job: a multi-layer perceptron on images, `python -m jobs.mlp`. See README.md beside this file."""
