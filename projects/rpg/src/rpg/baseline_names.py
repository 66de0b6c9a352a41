"""What a ring is compared with, one line each. Imports no torch, so that `--help` can list them."""

from __future__ import annotations

BASELINES: dict[str, str] = {
    "vanilla": "the host as it is: every weight its own parameter",
    "narrow": "the host at the largest width that fits the ring's parameters (`baselines.narrow_host`)",
    "low-rank": "k x k convolutions to rank q, then 1x1; q from the budget (`baselines.low_rank`)",
    "tied": "recurrent convolution: layers of one shape use one kernel (`baselines.tie_layers`)",
    "reuse": "the same out of a ring: every layer starts at 0 (plans `reuse` and `seq`)",
    "hash": "HashedNets: each weight an independent random entry; per layer (plan `hash`, scope `layer`) or global",
    "pruned": "magnitude pruning to as many non-zeros, at once or in rounds (`baselines.MagnitudePruning`)",
    "subspace": "theta = theta0 + E w with a fixed random E (`baselines.RandomSubspace`; small hosts)",
    "deq": "a deep equilibrium model: one block, solved for its fixed point (host `msblock`, mode=deq)",
}
