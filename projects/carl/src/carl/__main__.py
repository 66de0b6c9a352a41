"""`python -m carl`: the same as the command `carl`."""

import sys

from carl.cli import main

if __name__ == "__main__":
    sys.exit(main())
