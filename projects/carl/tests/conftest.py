"""One thread a test process: the matrices are small."""

import torch

torch.set_num_threads(1)
