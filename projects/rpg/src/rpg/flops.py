"""Multiply-accumulates of a network. A ring lowers the degrees of freedom, never these: print both side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode, as counted by torch's `FlopCounterMode`.

    Matrix products and convolutions are counted; biases, norms and activations are not. A host that
    iterates (DEQ) is counted as it ran, on noise. The modes of all modules are left as found.

    Args:
        model: any network; a wrapped one counts like its host (unpacking the ring is a gather, no product).
        input_shape: shape of the input without the batch, such as (3, 32, 32).
    """
    anchor = next(iter(model.parameters()), torch.empty(0))
    # Not blank: a fixed point would be found at once. A generator of its own leaves the global one alone.
    x = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0)).to(anchor)
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        # The fused attention kernels of the CPU are unknown to the counter; the plain products are counted.
        with counter, sdpa_kernel(SDPBackend.MATH):
            model(x)
    finally:
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() // 2  # torch counts a multiply-accumulate as two operations
