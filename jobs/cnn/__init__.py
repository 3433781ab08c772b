"""The CNN job: a convolutional network on images, `python -m jobs.cnn`. See README.md beside this file."""
