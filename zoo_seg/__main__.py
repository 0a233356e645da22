"""`python -m zoo_seg` is `zoo-seg`."""

import sys

from zoo_seg.cli import main

if __name__ == "__main__":
    sys.exit(main())
