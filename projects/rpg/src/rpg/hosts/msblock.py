"""The multi-scale block network of the comparison with implicit models (MDEQ, Bai et al. 2020; paper section 4.2).

One block, three ways: unrolled with kernels per call (a ring makes them: RPG), unrolled with tied kernels, or
solved for its fixed point (DEQ). Where the source leaves the block open, norms follow every convolution, as in MDEQ.

B batch, R resolutions, C_i channels at resolution i, H_i = H / 2^i.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from rpg.deq import FixedPoint, fixed_point
from rpg.hosts.calls import share_calls
from rpg.hosts.host import Host, kaiming_init
from rpg.hosts.resnet import conv1x1, conv3x3
from shared.config import UserError, check_choice, check_range

RESOLUTIONS = 3


def group_norm(channels: int) -> nn.GroupNorm:
    """At most four groups, as in MDEQ, of at least eight channels; a channel that is nearly dead, normalised alone,
    makes the block so steep that no fixed point is found. Batch statistics would couple the samples of a solve.
    """
    groups = next((g for g in (4, 2) if channels % g == 0 and channels // g >= 8), 1)
    return nn.GroupNorm(groups, channels)


class Branch(nn.Module):
    """Residual block of one resolution with the input injected after its second norm."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.conv1 = conv3x3(channels, inner)
        self.norm1 = group_norm(inner)
        self.conv2 = conv3x3(inner, channels)
        self.norm2 = group_norm(channels)
        # Keeps the state bounded however often the block is applied.
        self.norm3 = group_norm(channels)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.norm1(self.conv1(z)).relu()
        return self.norm3((z + self.norm2(self.conv2(h)) + x).relu())


def fusion_path(source: int, target: int, widths: tuple[int, ...]) -> nn.Module:
    """From resolution `source` to `target`: strided 3x3 convolutions down, or 1x1 and nearest-neighbour up."""
    if source == target:
        return nn.Identity()
    if source > target:
        up = nn.Upsample(scale_factor=2 ** (source - target), mode="nearest")
        return nn.Sequential(conv1x1(widths[source], widths[target]), group_norm(widths[target]), up)
    path = nn.Sequential()
    for step in range(source, target):
        outputs = widths[target] if step == target - 1 else widths[source]
        path.extend([conv3x3(widths[source], outputs, stride=2), group_norm(outputs)])
        if step < target - 1:
            path.append(nn.ReLU())
    return path


class MSBlock(nn.Module):
    """A residual block per resolution, then every resolution receives from every other."""

    def __init__(self, widths: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(channels, expansion) for channels in widths)
        self.fuse = nn.ModuleList(  # fuse[target][source]
            nn.ModuleList(fusion_path(source, target, widths) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, z: list[Tensor], x: list[Tensor]) -> list[Tensor]:
        """States and injected inputs, R of shape [B, C_i, H_i, W_i] each, to the next states."""
        r = [branch(z[i], x[i]) for i, branch in enumerate(self.branches)]
        fused = []
        for paths in self.fuse:
            assert isinstance(paths, nn.ModuleList)
            fused.append(torch.stack([path(r[source]) for source, path in enumerate(paths)]).sum(0).relu())
        return fused


class MSBlockNet(Host):
    """Stem, multi-scale block called several times, classifier on the pooled states.

    The state starts at the injected input: from zero, the first call's first kernels would see nothing and never learn.

    Generated are the convolutions of the calls; the stem, the injection, norms and the classifier are own.
    With width 9 the tied or DEQ form has 167,779 parameters on colour images with 10 classes; width 32 is the
    larger one. The tied form equals plan `seq` with a ring of one call's weights.

    Args:
        width: channels at the full resolution, doubled at each coarser one.
        expansion: widening between the two convolutions of a branch (5 in MDEQ's small model).
        mode: `unrolled` (back-propagated through the calls) or `deq` (fixed point, implicit gradient).
        calls: calls of the unrolled form; `deq` has one block whatever this says.
        share: what the calls share: `none` (for a ring), `kernels` (tied, own norms), `all`.
        memory, beta, forward_iterations, backward_iterations, tolerance: of `rpg.deq.fixed_point`.
    """

    generated_patterns: ClassVar[tuple[str, ...]] = (
        "calls.*.branches.*.conv?.weight",
        # In a path, convolution, norm and ReLU follow each other: 0 and 3 are the convolutions.
        "calls.*.fuse.*.*.0.weight",
        "calls.*.fuse.*.*.3.weight",
    )

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        width: int = 9,
        expansion: int = 5,
        mode: str = "unrolled",
        calls: int = 3,
        share: str = "none",
        memory: int = 5,
        beta: float = 1.0,
        forward_iterations: int = 18,
        backward_iterations: int = 20,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        check_range("width", width, 1)
        check_range("expansion", expansion, 1)
        check_choice("mode", mode, ("unrolled", "deq"))
        check_range("calls", calls, 1)
        check_range("memory", memory, 0)
        check_range("beta", beta, 0, open_low=True)
        check_range("forward_iterations", forward_iterations, 1)
        check_range("backward_iterations", backward_iterations, 1)
        check_range("tolerance", tolerance, 0)
        if image_size % 2 ** (RESOLUTIONS - 1):
            raise UserError("image_size", image_size, f"a multiple of {2 ** (RESOLUTIONS - 1)}")
        widths = tuple(width * 2**i for i in range(RESOLUTIONS))
        self.mode = mode
        self.stem = nn.Sequential(conv3x3(in_channels, width), nn.BatchNorm2d(width), nn.ReLU())
        self.inject = nn.ModuleList(conv1x1(width, channels) for channels in widths)
        blocks = [MSBlock(widths, expansion) for _ in range(calls if mode == "unrolled" else 1)]
        self.calls = share_calls(blocks, share)
        self.head = nn.Linear(sum(widths), num_classes)
        self.solver = {
            "memory": memory,
            "beta": beta,
            "forward_iterations": forward_iterations,
            "backward_iterations": backward_iterations,
            "tolerance": tolerance,
        }
        self.report: FixedPoint | None = None
        """Residuals and iterations of the last forward (and backward) solve in mode `deq`."""
        kaiming_init(self)
        if mode == "deq":
            self._start_as_contraction()

    @torch.no_grad()
    def _start_as_contraction(self) -> None:
        """Weaken what depends on the state and strengthen the input.

        From the usual start the iteration does not settle (residual 0.1 after 60 evaluations), and the implicit
        gradient is one of no fixed point; from this one both solves come under 1e-3 within 18 and 20 evaluations.
        """
        for name, part in self.calls.named_modules():
            if isinstance(part, nn.GroupNorm) and not name.endswith("norm1"):
                part.weight.fill_(0.5 if name.endswith("norm3") else 0.1)
        for inject in self.inject:
            assert isinstance(inject, nn.Conv2d)
            inject.weight.mul_(3)

    def stages(self) -> tuple[str, ...]:
        return tuple(f"calls.{k}" for k in range(len(self.calls)))

    def blocks(self) -> tuple[str, ...]:
        return self.stages()

    def subnetworks(self) -> tuple[str, ...]:
        return self.stages()

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of images `[B, C, H, W]`."""
        x = self.stem(x)  # [B, C_0, H, W]
        injected = [inject(avg_pool2d(x, 2**i) if i else x) for i, inject in enumerate(self.inject)]
        states = self._solve(injected) if self.mode == "deq" else self._unroll(injected)
        return self.head(torch.cat([z.mean((2, 3)) for z in states], dim=1))

    def _unroll(self, x: list[Tensor]) -> list[Tensor]:
        z = x
        for call in self.calls:
            z = call(z, x)
        return z

    def _solve(self, x: list[Tensor]) -> list[Tensor]:
        shapes = [part.shape[1:] for part in x]
        sizes = [shape.numel() for shape in shapes]

        def unpack(flat: Tensor) -> list[Tensor]:
            return [part.unflatten(1, shape) for part, shape in zip(flat.split(sizes, dim=1), shapes, strict=True)]

        def f(flat: Tensor) -> Tensor:  # [B, n] -> [B, n]
            return torch.cat([part.flatten(1) for part in self.calls[0](unpack(flat), x)], dim=1)

        # The solver mixes in single precision even where autocast computes the block in half.
        start = torch.cat([part.flatten(1) for part in x], dim=1).to(torch.promote_types(x[0].dtype, torch.float))
        z, self.report = fixed_point(f, start, **self.solver)
        return unpack(z)
