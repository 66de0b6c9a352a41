"""Baselines that protect old tasks in one set of weights: penalties (EWC, SI) and projected gradients (A-GEM).

All have one interface, `Regulariser`, which the task calls at the same places of every step.
"""
