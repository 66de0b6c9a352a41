"""Linear over-parameterisation: layers that train as products of linear maps and are one map when used.

from low_rank.overparam import ExpandedConv2d, ExpandedLinear, collapse, overparameterize
"""

from low_rank.overparam.compose import collapse_graph, compose_conv, compose_linear, fold_batch_norm
from low_rank.overparam.convert import Replaced, Report, balanced_factors, collapse, overparameterize
from low_rank.overparam.layers import Expanded, ExpandedConv2d, ExpandedLinear

__all__ = [
    "Expanded",
    "ExpandedConv2d",
    "ExpandedLinear",
    "Replaced",
    "Report",
    "balanced_factors",
    "collapse",
    "collapse_graph",
    "compose_conv",
    "compose_linear",
    "fold_batch_norm",
    "overparameterize",
]
