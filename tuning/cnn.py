"""`python -m tuning.cnn` is what `python -m tuning cnn` was called before, and still works."""

import sys

from tuning.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["cnn", *sys.argv[1:]]))
