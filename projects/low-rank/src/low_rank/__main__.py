"""`python -m low_rank VERB`."""

import sys

from low_rank.cli import main

if __name__ == "__main__":
    sys.exit(main())
