"""The low-rank simplicity bias in deep networks (arXiv 2103.10427): rank of what deep nets compute.

from low_rank.rank import effective_rank
from low_rank.overparam import collapse, overparameterize
"""
