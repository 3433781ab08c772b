"""`python -m tuning.transformer` is what `python -m tuning transformer` was called before, and still works."""

import sys

from tuning.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["transformer", *sys.argv[1:]]))
