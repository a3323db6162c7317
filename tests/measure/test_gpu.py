"""A GPU's peaks: that the loops are what they say, and the arithmetic; with a GPU, measured."""

import json
from pathlib import Path
from typing import Any

import pytest
from numba import cuda

from minires.cli import main
from minires.kernels.cuda.driver import Gpu
from minires.kernels.cuda.instructions import INSTRUCTIONS, Instruction
from minires.measure import gpu as machine
from minires.measure.gpu import (
    BLOCKS,
    REPEATS,
    SUMS,
    THREADS,
    Copying,
    Peak,
    format_gpu,
    operations,
    spinner,
)
from tests.made_up_gpu import MadeUpGpu, made_up_gpu
from tests.ptxas import NEW, compile_and_assemble

__all__ = ["made_up_gpu"]  # a fixture

GPU = Gpu("Some GPU", (9, 0), 132, 0)
PEAKS = [
    Peak("fma", "fma.rn.f32", 1, 60.0, 0.001),
    Peak("mma-u8s8", "mma.sync", 128, 1200.0, 0.002),
]
COPYING = Copying(2**29, 2800.4, 0.003)


@pytest.mark.parametrize("instruction", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_what_is_timed_is_that_instruction_and_little_else(
    instruction: Instruction, tmp_path: Path
) -> None:
    """No loads, no spills; registers for all the threads that are meant to be there at once."""
    found = compile_and_assemble(*spinner(instruction.name), NEW, tmp_path)
    lines = [line.split()[0] for line in found.ptx.splitlines() if line.strip().endswith(";")]
    count = SUMS * REPEATS * instruction.times
    assert found.ptx.count(f"{instruction.mnemonic} ") == count
    assert not [word for word in lines if word.startswith(("ld.global", "ld.shared", "ld.local"))]
    assert len([word for word in lines if word.startswith("st.")]) == 1  # that is never reached
    # The assembler has merged none and written none twice; nothing else is there half as often.
    (_, most), (_, next_most) = found.opcodes.most_common(2)
    assert most == count > 2 * next_most
    assert found.spilled == 0
    assert found.registers * THREADS * BLOCKS <= 2**16


@pytest.mark.parametrize(
    ("name", "of_a_lane"),
    [
        ("fma", 1),
        ("dp4a", 4),
        ("mma-tf32", 32),
        ("mma-f16", 64),
        ("mma-bf16", 64),
        ("mma-u8s8", 128),
        ("mma-small-u8s8", 4 * 32),  # four of them in the place of one
        ("mma-small-f16", 2 * 32),
    ],
)
def test_operations_are_two_for_each_product_of_each_lane(name: str, of_a_lane: int) -> None:
    lanes = 132 * BLOCKS * THREADS
    expected = 2 * of_a_lane * lanes * SUMS * REPEATS * 10
    assert operations(INSTRUCTIONS[name], 10, 132) == expected


class Spinner:
    """Stands for a compiled loop that runs at some rate."""

    def __init__(self, gpu: MadeUpGpu, instruction: Instruction, rate: float) -> None:
        self.gpu, self.instruction, self.rate = gpu, instruction, rate

    def __getitem__(self, launch: tuple[int, int, Any]) -> Any:
        blocks, threads, _ = launch
        assert (blocks, threads) == (GPU.processors * BLOCKS, THREADS)

        def run(count: int, *_: int) -> None:
            self.gpu.takes(operations(self.instruction, count, GPU.processors) / self.rate)()

        return run


def test_a_peak_is_the_rate_of_its_loop(
    made_up_gpu: MadeUpGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    instruction = INSTRUCTIONS["mma-u8s8"]
    loop = Spinner(made_up_gpu, instruction, rate=1.2e15)
    monkeypatch.setattr(machine, "_compiled_spinner", lambda name: loop)
    peak = machine.measure_peak(instruction, GPU)
    assert peak.tops == pytest.approx(1200)
    assert peak.spread == pytest.approx(0, abs=1e-6)
    assert (peak.name, peak.mnemonic) == ("mma-u8s8", instruction.mnemonic)


def test_the_memorys_rate_is_of_bytes_read_and_written(made_up_gpu: MadeUpGpu) -> None:
    made_up_gpu.bandwidth = 2.5e12
    assert machine.measure_copying().gbs == pytest.approx(2500)


def test_short_launches_are_recorded_often(made_up_gpu: MadeUpGpu) -> None:
    run, count = machine.repeated(made_up_gpu.stream, made_up_gpu.takes(3e-5))
    assert count == 67
    assert machine.time_on_gpu(made_up_gpu.stream, run, 2) == pytest.approx([67 * 3e-5] * 2)
    _, count = machine.repeated(made_up_gpu.stream, made_up_gpu.takes(5e-3))
    assert count == 1


def test_the_table_has_the_card_the_instructions_and_the_memory() -> None:
    text = format_gpu(GPU, PEAKS, COPYING)
    assert text.startswith("Some GPU, compute capability 9.0, 132 multiprocessors, ")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["fma"] == ["fma.rn.f32", "1", "60.0", "1.00x", "0.1%"]
    assert rows["mma-u8s8"] == ["mma.sync", "128", "1200.0", "20.00x", "0.2%"]
    assert rows["memory:"][:2] == ["2800", "GB/s,"]
    assert "NOT STEADY" not in text


def test_figures_in_doubt_are_marked() -> None:
    busy = format_gpu(GPU, [PEAKS[0], PEAKS[1]._replace(spread=0.4)], COPYING)
    assert "NOT STEADY: runs of mma-u8s8 differ by 40%" in busy
    assert "1200.0?" in busy
    busy = format_gpu(GPU, PEAKS, COPYING._replace(spread=0.5))
    assert "2800? GB/s" in busy


def test_the_command_tells_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minires.kernels.cuda.driver.open_gpu", lambda: GPU)
    monkeypatch.setattr(machine, "measure_gpu", lambda: (GPU, PEAKS, COPYING))
    assert main(["peak", "--backend", "cuda"]) == 0
    assert capsys.readouterr().out.strip() == format_gpu(GPU, PEAKS, COPYING)
    assert main(["peak", "--backend", "cuda", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["machine"].startswith("Some GPU")
    assert [peak["tops"] for peak in answer["peaks"]] == [60.0, 1200.0]
    assert answer["memory"]["gbs"] == 2800.4


@pytest.mark.skipif(not cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_measured() -> None:
    _, peaks, copying = machine.measure_gpu()
    assert all(peak.tops > 0 for peak in peaks)
    by_name = {peak.name: peak.tops for peak in peaks}
    assert by_name["mma-u8s8"] > by_name["mma-f16"] > by_name["fma"]
    assert copying.gbs > 0


def test_roofs_are_the_instructions_peak_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "open_gpu", lambda: GPU)
    monkeypatch.setattr(machine, "measure_copying", lambda: COPYING)
    asked = []

    def measure_peak(instruction: Instruction, _: Gpu) -> Peak:
        asked.append(instruction.name)
        return PEAKS[1]

    monkeypatch.setattr(machine, "measure_peak", measure_peak)
    roofs = machine.measure_roofs("int8")
    assert asked == ["mma-u8s8"]
    assert roofs.peak == 1_200_000
    assert roofs.level(1e12).all == COPYING.gbs
    assert not roofs.doubts
