"""`python -m word_factors VERB`: the command line without installation."""

import sys

from word_factors.cli import main

if __name__ == "__main__":
    sys.exit(main())
