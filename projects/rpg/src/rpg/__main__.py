"""`python -m rpg VERB`: the command line without installation."""

import sys

from rpg.cli import main

if __name__ == "__main__":
    sys.exit(main())
