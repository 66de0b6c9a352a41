"""Superposition of many models into one (arXiv 1902.05522): models bound to contexts share one set of weights.

from superposition.nets import contextualize
net = contextualize(model, "binary")
net(x, 3)
"""
