"""Names of the context families, one line each, and which are which. Imports no torch: `--help` lists them."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal[
    "none",
    "binary",
    "complex",
    "rotation",
    "power",
    "local-mix",
    "local-mult",
    "hadamard",
    "householder",
    "permutation",
    "signed-permutation",
    "mask",
    "ternary",
    "normal",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

DESCRIPTIONS: dict[Kind, str] = {
    "none": "no context: one plain network",
    "binary": "signs, +1 or -1 an input (pspBinary)",
    "complex": "unit phasors in a network of complex numbers (pspComplex)",
    "rotation": "orthogonal matrices, uniform over all (pspRotation)",
    "power": "powers of one base phasor: context k is k times its phases, k may be real",
    "local-mix": "phases averaged over neighbouring contexts, cyclic",
    "local-mult": "phasors of neighbouring contexts multiplied, cyclic",
    "hadamard": "rows of a Hadamard matrix: exactly orthogonal signs",
    "householder": "reflections along a random direction",
    "permutation": "the inputs in another order",
    "signed-permutation": "the same with random signs",
    "mask": "0 or 1 an input: half of the inputs a task (as XdG gates units)",
    "ternary": "-1, 0 or +1 an input",
    "normal": "independent Gaussian factors",
}

PHASES: tuple[Kind, ...] = ("complex", "power", "local-mix", "local-mult")  # need complex networks
MATRICES: tuple[Kind, ...] = ("rotation", "householder", "permutation", "signed-permutation")
DIAGONALS: tuple[Kind, ...] = ("binary", "hadamard", "mask", "ternary", "normal")
CYCLIC: tuple[Kind, ...] = ("local-mix", "local-mult")  # neighbours are taken modulo the number of contexts
INVERTIBLE: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in ("mask", "ternary"))
LEARNABLE: tuple[Kind, ...] = ("binary", "complex", "rotation", "mask", "ternary", "normal")
WITHOUT_BIAS: tuple[Kind, ...] = ("binary", "mask", "ternary", "normal")  # in the authors' code
