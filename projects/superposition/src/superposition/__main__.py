"""`python -m superposition VERB`."""

import sys

from superposition.cli import main

if __name__ == "__main__":
    sys.exit(main())
