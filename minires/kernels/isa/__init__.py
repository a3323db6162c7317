"""Instruction sets: all that minires knows, those that this CPU has, and the one that is used.

A set is a file here, or a few lines of one. `Instruction` tells what an instruction is.
"""

import os

from numba.core import config
from numba.core.codegen import get_host_cpu_features

from minires.errors import MiniresError
from minires.kernels.cpu import arm_features
from minires.kernels.ir import ARM, FAMILY
from minires.kernels.isa.amx import AMX
from minires.kernels.isa.arm import NEON, NEON_BF16, NEON_DOTPROD, NEON_I8MM, NEON_MMLA
from minires.kernels.isa.generic import GENERIC
from minires.kernels.isa.instruction import ISA, Instruction
from minires.kernels.isa.x86 import AVX2, AVX512, AVX512BF16, AVX512VNNI, AVXVNNI, BEFORE_VNNI

__all__ = ["INSTRUCTIONS", "ISA", "ISAS", "Instruction", "available_isas", "choose_isa"]

# The best first; those for study last.
ISAS = {
    isa.name: isa
    for isa in (
        *(AMX, AVX512BF16, AVX512VNNI, AVX512, AVXVNNI, AVX2),
        *(NEON_MMLA, NEON_BF16, NEON_I8MM, NEON_DOTPROD, NEON),
        *(GENERIC, *BEFORE_VNNI),
    )
}
INSTRUCTIONS = {
    i.name: i for isa in ISAS.values() for i in (*isa.instructions.values(), *isa.others)
}


def _present(features: str) -> set[str]:
    """Return the features that LLVM marks with a plus, in a text such as "+avx2,-avx512f"."""
    return {word[1:] for word in features.split(",") if word[:1] == "+"}


def cpu_features() -> set[str]:
    """Name the features of this CPU that matter here, in LLVM's words."""
    if FAMILY == ARM:  # LLVM goes by a list of CPUs there, and may guess too much
        return arm_features()
    return _present(get_host_cpu_features())  # Numba may hide some, such as AVX


def available_isas() -> list[ISA]:
    """List the sets of this CPU that Numba compiles for: the best first, those for study last."""
    features = cpu_features()
    if config.CPU_FEATURES is not None:  # restricted by NUMBA_CPU_FEATURES or NUMBA_CPU_NAME
        features &= _present(config.CPU_FEATURES)
    return [isa for isa in ISAS.values() if isa.features <= features and isa.allowed()]


def choose_isa() -> ISA:
    """Choose the best instruction set, or the one that MINIRES_ISA names.

    A name that is not known or not available raises `MiniresError`, because an instruction that the
    CPU lacks would end the process.
    """
    isas = {isa.name: isa for isa in available_isas()}
    name = os.environ.get("MINIRES_ISA") or next(iter(isas))
    if name not in isas:
        lacks = ", which this machine lacks" if name in ISAS else ""
        raise MiniresError(
            f"MINIRES_ISA is {name!r}{lacks}; on this machine it may be {', '.join(isas)}"
        )
    return isas[name]
