"""`python -m tuning.mlp` is what `python -m tuning mlp` was called before, and still works."""

import sys

from tuning.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["mlp", *sys.argv[1:]]))
