"""What image data can be read from, one file a format; `jobs.common.images` finds out which it is."""
