"""Model files against their bound: itemsize * (M + own numbers) + 64 KiB, for nothing else is stored.

    python projects/rpg/benchmarks/file_size.py [--quick] [--json PATH]

Own numbers are the parameters and buffers that the host keeps. The dense state dict of the same network stands beside.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from rpg.hosts import make_host
from rpg.wrap import RPGModel
from shared.races import conditions, record

ROOM = 64 * 1024  # bytes for specification, names, shapes and the container
# Host, channels, side, outputs, ring size.
SMALL = (("mlp", 1, 28, 10, 3000), ("patch-resnet", 3, 32, 10, 9216), ("vit-mini", 3, 32, 10, 20_000))
LARGE = (("resnet18", 3, 224, 1000, 2_359_296), ("resnet34", 3, 224, 1000, 53_146))


def main() -> int:
    """Write the files, print the ratios, and return 1 if a file is larger than its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small networks only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(conditions())
    rows, missed = [], False
    for name, channels, side, outputs, size in SMALL if options.quick else (*SMALL, *LARGE):
        host = make_host(name, in_channels=channels, num_classes=outputs, image_size=side)
        dense = io.BytesIO()
        torch.save(host.state_dict(), dense)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*feed no normalisation.*")  # nothing is trained here
            model = RPGModel(host, ring_size=size)
        with tempfile.TemporaryDirectory() as folder:
            found = model.save(Path(folder) / "model.pt")
        own = sum(value.numel() * value.element_size() for value in model.own_state().values())
        bound = 4 * model.ring_total + own + ROOM
        missed |= found > bound
        verdict = "met" if found <= bound else "missed"
        smaller = dense.getbuffer().nbytes / found
        print(f"{name}: {found:,} bytes, {found / bound:.3f} of the bound {bound:,} ({verdict}); dense {smaller:.1f}x")
        rows.append((name, f"{size:,}", f"{found:,}", f"{bound:,}", f"{found / bound:.3f}", f"{smaller:.1f}x", verdict))
    columns = ("host", "ring M", "bytes", "bound", "bytes / bound", "dense file / ours", "verdict")
    record(options.json, "Model files against itemsize * (M + own numbers) + 64 KiB", columns, rows, "cpu")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
