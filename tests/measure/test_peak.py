"""Microbenchmarks: that they time what they say, not how fast it is."""

import re

import pytest

from minires.kernels.cpu import caches
from minires.kernels.ir import FAMILY
from minires.kernels.isa import INSTRUCTIONS, ISA, ISAS, Instruction, available_isas
from minires.measure import session
from minires.measure.peak import (
    Bandwidth,
    Peak,
    best_instruction,
    doubt_gain,
    doubts_about,
    inner_loop,
    instructions,
    measure_bandwidths,
    measure_peak,
    spinner,
)

LISTING = """
run:
    vmovups (%rdi), %ymm0   # the operands
.LBB0_1:
    vxorps %ymm1, %ymm1, %ymm1
.LBB0_2:
        .p2align 4
    vfmadd231ps %ymm0, %ymm1, %ymm2
    vfmadd231ps %ymm0, %ymm1, %ymm3
    decq %rax
    jne .LBB0_2
    vmovups %ymm2, (%rsi)
    jmp .LBB0_1
.LBB0_3:
    incq %rcx
    jne .LBB0_3
"""


def test_the_inner_loop_is_cut_out() -> None:
    loop = inner_loop(LISTING, "vfmadd").splitlines()
    words = [line.split()[0] for line in loop]
    assert words == [".LBB0_2:", "vfmadd231ps", "vfmadd231ps", "decq", "jne"]
    assert inner_loop("ret", "vfmadd") == ""


OF_ARM = """
run:
    mov x8, xzr  // nothing yet
LBB0_1: ; as macOS writes it
    fmla v2.4s, v0.4s, v1.4s
    // InlineAsm Start
    fmla v3.4s, v0.4s, v1.4s
    add x8, x8, #1
    tbnz w9, #0, LBB0_1
    fmla v4.4s, v0.4s, v1.4s
    ret
again:
    bl run
    ret
"""


def test_the_inner_loop_is_cut_out_of_arms_assembly() -> None:
    loop = inner_loop(OF_ARM, "fmla").splitlines()
    assert [line.split()[0] for line in loop] == ["LBB0_1:", "fmla", "fmla", "add", "tbnz"]
    assert loop[-2].endswith("#1")


TIMED = [(isa, i) for isa in ISAS.values() if isa.family == FAMILY for i in instructions(isa)]


@pytest.mark.parametrize(("isa", "instruction"), TIMED, ids=lambda value: value.name)
def test_what_is_timed_is_that_instruction_and_little_else(
    isa: ISA, instruction: Instruction
) -> None:
    """As many as there are sums in a round, and the counting; a sequence has that many of each.

    Of every set of this family: what is compiled for it needs a CPU that has it only to run.
    """
    (text,) = spinner(isa.name, instruction.name).inspect_asm().values()
    loop = inner_loop(text, instruction.mnemonics[0])
    for mnemonic in instruction.mnemonics:
        assert len(re.findall(mnemonic, loop)) >= instruction.sums
    assert not re.search(r"\(%|\[", loop), "operands in memory: fewer sums would fit"
    if "vpdpwssd" not in instruction.mnemonics:
        assert "vpdpwssd" not in loop, "an instruction of VNNI, which LLVM makes of two before it"


@pytest.mark.parametrize("isa", available_isas(), ids=lambda isa: isa.name)
def test_a_peak_is_measured(isa: ISA, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(session, "say", said.append)
    for instruction in instructions(isa):
        peak = measure_peak(instruction, isa, threads=1)
        assert said[-1].endswith(f": {peak.gops:.1f} GOP/s on one core"), "one thread is told once"
        assert min(peak.gops, peak.all_gops, peak.clock) > 0
        assert peak.spread >= 0


def test_the_arithmetic_is_lanes_products_rate_and_clock() -> None:
    fma = INSTRUCTIONS["fma"]
    peak = Peak(fma, 16, 215.0, 430.0, 2, 0.0, 3.5, "")
    assert peak.rate == pytest.approx(215 / (2 * 16 * 3.5))
    assert peak.likely_rate == 2
    assert peak.arithmetic == pytest.approx(2 * 16 * 2 * 3.5)
    assert peak._replace(gops=150.0).arithmetic is None  # 1.3 a cycle


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_each_instruction_set_has_a_peak_for_each_precision(isa: ISA) -> None:
    best = {p: best_instruction(p, isa).name for p in ("fp32", "bf16", "int8", "int8-simulated")}
    names = {operands: instruction.name for operands, instruction in isa.instructions.items()}
    assert best["int8-simulated"] == best["fp32"] == names["f32"]
    if names["u8s8"] in ("vpdpbusd", "tdpbusd"):
        assert best["int8"] == names["u8s8"]
        assert "vpmaddubsw" in [i.name for i in instructions(isa)]  # what came before, beside it
    if names["u8s8"] in ("sdot", "usdot", "usmmla"):
        assert best["int8"] == names["u8s8"]
        assert "smull" in [i.name for i in instructions(isa)]
    of_its_own = isa.name in ("avx512bf16", "amx", "neon-bf16", "neon-mmla")
    assert best["bf16"] == (names["bf16"] if of_its_own else best["fp32"])


def test_each_level_of_the_memory_is_read() -> None:
    found = measure_bandwidths(1)
    assert [b.level for b in found] == [*(cache.level for cache in caches()), "memory"]
    assert [b.size for b in found] == sorted(b.size for b in found)
    assert all(b.one > 0 and b.all > 0 and b.spread >= 0 for b in found)
    # On a busy machine the memory can seem as fast as the first cache: then that is said. On an
    # emulated one it is as fast.
    assert found[-1].one < 1.1 * found[0].one or doubts_about(found)


LEVELS = [
    Bandwidth("L1", 2**14, 100.0, 200.0, 2, 0.02),
    Bandwidth("L2", 2**18, 60.0, 110.0, 2, 0.02),
    Bandwidth("memory", 2**26, 10.0, 15.0, 2, 0.02),
]


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({}, ""),
        ({"spread": 0.4}, "runs of reading L2 differ by 40%"),
        ({"all": 20.0}, "L2 is read more slowly by 2 threads than by one"),
        ({"one": 130.0, "all": 190.0}, "L2 is read faster than L1"),
        ({"one": 5.0, "all": 110.0}, "memory is read faster than L2"),
    ],
)
def test_bandwidths_that_cannot_be_are_doubted(change: dict[str, float], doubt: str) -> None:
    levels = [LEVELS[0], LEVELS[1]._replace(**change), LEVELS[2]]
    found = doubts_about(levels)
    assert len(found) == bool(doubt)
    assert all(text.startswith(doubt) for text in found)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({}, ""),
        ({"spread": 6.7}, "runs of fma differ by 670%"),
        ({"all_gops": 250.0}, "fma is faster on 2 threads than so many cores can be"),
        ({"all_gops": 60.0}, "fma is slower on 2 threads than on one"),
    ],
)
def test_a_peak_that_cannot_be_is_doubted(change: dict[str, float], doubt: str) -> None:
    fma = INSTRUCTIONS["fma"]
    peak = Peak(fma, 8, 100.0, 200.0, 2, 0.01, 3.1, "")._replace(**change)
    assert len(peak.doubts) == bool(doubt)
    assert all(text.startswith(doubt) for text in peak.doubts)


def test_a_gain_that_other_cores_change_is_doubted() -> None:
    fma, vnni = INSTRUCTIONS["fma"], INSTRUCTIONS["vpdpbusd"]
    slower = Peak(fma, 16, 100.0, 190.0, 2, 0.0, 3.0, "")
    assert doubt_gain(Peak(vnni, 16, 400.0, 760.0, 2, 0.0, 3.0, ""), slower) == []
    (doubt,) = doubt_gain(Peak(vnni, 16, 400.0, 500.0, 2, 0.0, 3.0, ""), slower)
    gain = "vpdpbusd's gain over fma, by one core and by 2, disagree, 4 and 2.63"
    assert doubt == f"two measures of {gain}"
