"""Recurrent Parameter Generators (Wang et al., arXiv 2107.07110)."""

__version__ = "0.1.0"
