"""Which instruction sets there are, what is said of them, and which one is chosen."""

import re

import pytest
from numba import types

from minires.errors import MiniresError
from minires.kernels import isa as module
from minires.kernels.compile import compile_for
from minires.kernels.ir import ARM, FAMILY
from minires.kernels.isa import INSTRUCTIONS, ISAS, amx, available_isas, choose_isa

HERE = {isa.name for isa in available_isas()}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_an_instruction_says_all_there_is_to_say(name: str) -> None:
    instruction = INSTRUCTIONS[name]
    per_group = {"f32": 1, "bf16": 2, "u8s8": 4}[instruction.operands]
    rows = instruction.rows if instruction.own_registers else 1
    assert instruction.products == per_group * rows * instruction.groups
    assert instruction.mnemonics
    assert all(re.compile(mnemonic) for mnemonic in instruction.mnemonics)
    assert instruction.idea[0].islower()
    assert bool(instruction.less) == bool(instruction.before)
    if instruction.rows == instruction.groups == 1 and not instruction.explained:
        assert instruction.idea == f"the vector instruction {name}"


@pytest.mark.parametrize("name", ISAS)
def test_a_set_has_an_instruction_and_a_tile_for_each_precision(name: str) -> None:
    isa = ISAS[name]
    assert isa.instructions.keys() == isa.tiles.keys() == {"f32", "bf16", "u8s8"}
    for operands, instruction in isa.instructions.items():
        assert instruction.operands == operands
        assert isa.tiles[operands][0] % instruction.rows == 0
    assert re.fullmatch("[a-z0-9-]+", name)  # "_" separates the parts of a microkernel's name


def test_the_best_available_set_is_chosen_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MINIRES_ISA", raising=False)
    assert choose_isa() == available_isas()[0]
    monkeypatch.setenv("MINIRES_ISA", "generic")
    assert choose_isa() is ISAS["generic"]
    missing = next((name for name in ISAS if name not in HERE), "abacus")
    monkeypatch.setenv("MINIRES_ISA", missing)
    with pytest.raises(MiniresError, match=f"MINIRES_ISA is '{missing}', which this machine lacks"):
        choose_isa()


def test_amx_is_for_processes_that_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ",".join(
        f"+{name}" for name in frozenset().union(*(i.features for i in ISAS.values()))
    )
    monkeypatch.setattr(module, "FAMILY", "x86_64")
    monkeypatch.setattr(module.config, "CPU_FEATURES", None)
    monkeypatch.setattr(module, "get_host_cpu_features", lambda: everything)
    for allowed in (True, False):
        monkeypatch.setattr(amx, "_may_use_amx", lambda allowed=allowed: allowed)
        assert ("amx" in [isa.name for isa in available_isas()]) == allowed
    monkeypatch.setenv("MINIRES_ISA", "amx")
    with pytest.raises(MiniresError, match="MINIRES_ISA is 'amx', which this machine lacks"):
        choose_isa()


@pytest.mark.parametrize(
    ("features", "best"),
    [
        ({"neon"}, "neon"),
        ({"neon", "dotprod"}, "neon-dotprod"),
        ({"neon", "dotprod", "i8mm"}, "neon-i8mm"),
        ({"neon", "dotprod", "bf16"}, "neon-dotprod"),
        ({"neon", "dotprod", "i8mm", "bf16"}, "neon-mmla"),
    ],
)
def test_on_arm_the_system_is_asked_and_not_llvm(
    features: set[str], best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessed = "+neon,+dotprod,+i8mm,+bf16,+avx2,+fma"
    monkeypatch.setattr(module, "FAMILY", "aarch64")
    monkeypatch.setattr(module.config, "CPU_FEATURES", None)
    monkeypatch.setattr(module, "get_host_cpu_features", lambda: guessed)
    monkeypatch.setattr(module, "arm_features", lambda: features)
    monkeypatch.delenv("MINIRES_ISA", raising=False)
    assert choose_isa().name == best
    names = [isa.name for isa in available_isas()]
    assert names[-2:] == ["neon", "generic"]
    missing = [name for name in ISAS if name not in names]
    for name in missing:
        monkeypatch.setenv("MINIRES_ISA", name)
        with pytest.raises(
            MiniresError, match=f"MINIRES_ISA is '{name}', which this machine lacks"
        ):
            choose_isa()


def test_a_set_of_another_family_is_not_compiled_to_run() -> None:
    """LLVM would end the process: it cannot select an instruction that the family lacks."""
    other = "neon" if FAMILY != ARM else "avx2"
    with pytest.raises(MiniresError, match=f"{other} is for .* CPUs; this machine's is {FAMILY}"):
        compile_for(ISAS[other], lambda x: x, types.float64(types.float64))


def test_numbas_restrictions_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.config, "CPU_FEATURES", "")
    assert [isa.name for isa in available_isas()] == ["generic"]
    monkeypatch.setattr(module.config, "CPU_FEATURES", "+avx2,-avx512f")
    assert [isa.name for isa in available_isas()] == ["generic"]  # AVX2 here means FMA too


def test_what_the_cpu_lacks_is_not_available_whatever_numba_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = frozenset().union(*(isa.features for isa in ISAS.values()))
    monkeypatch.setattr(module, "FAMILY", "x86_64")
    monkeypatch.setattr(module.config, "CPU_FEATURES", ",".join(f"+{name}" for name in everything))
    monkeypatch.setattr(module, "get_host_cpu_features", lambda: "+avx2,+fma,-avx512f")
    expected = [isa.name for isa in ISAS.values() if isa.features <= {"avx2", "fma"}]
    assert [isa.name for isa in available_isas()] == expected
    assert {"avx2", "generic", "avx2-vpmaddubsw"} <= set(expected)
    assert "avx512" not in expected
