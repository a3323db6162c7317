import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from minires.errors import MiniresError
from minires.layers import Layer
from minires.model import ResNet50, Step
from minires.quantize.calibrate import calibrate, quantized_edges
from minires.quantize.convert import quantize_model
from minires.quantize.report import LayerReport, Report, format_report, logit_noise, report
from minires.reference import QParams
from tests.comparing import Array
from tests.seeded_weights import seeded_input, seeded_state_dict

HALVES = QParams(np.float32(0.5), 8)  # 0 to 255 stand for -4 to 123.5


class Told(ResNet50):
    """A network of one quantized edge and the logits, whose outputs are told beforehand."""

    def __init__(self, outputs: Sequence[tuple[Array, Array]], qparams: QParams | None) -> None:
        layers = [Layer("edge", "conv", (), 1, 1, qparams=qparams), Layer("fc", "linear", (), 1, 1)]
        super().__init__(layers, {})
        self.outputs = iter(outputs)

    def steps(self, x: Array, fused: bool = True) -> Iterator[Step]:
        for layer, output in zip(self.layers, next(self.outputs), strict=True):
            yield Step(layer, (x,), output)


def told_report(
    real: Sequence[Sequence[float]],
    quantized: Sequence[Sequence[int]],
    labels: Sequence[tuple[Sequence[int], Sequence[int]]] | None = None,
) -> Report:
    """Report on edges with these values, and on logits that have these labels; per batch."""
    labels = labels or [([0], [0])] * len(real)
    eye = np.eye(4, dtype=np.float32)
    fp32, int8 = [], []
    for y, q, (one, two) in zip(real, quantized, labels, strict=True):
        fp32.append((np.array(y, np.float32), eye[list(one)]))
        int8.append((np.array(q, np.uint8), eye[list(two)]))
    batches = [np.zeros((len(one), 3, 32, 32), np.float32) for one, _ in labels]
    return report(Told(fp32, None), Told(int8, HALVES), batches)


# By hand


def test_sqnr_is_the_power_of_the_values_over_that_of_the_errors() -> None:
    # The steps stand for 1, 2, -4 and 10.5.
    (edge,) = told_report([[1, 2.2, -4, 10]], [[10, 12, 0, 29]]).layers
    assert edge.name == "edge"
    signal, noise = 1 + 2.2**2 + 16 + 100, 0.2**2 + 0.5**2
    assert abs(edge.sqnr_db - 10 * math.log10(signal / noise)) < 1e-4
    assert abs(edge.sqnr_db - 26.23) < 0.01
    assert edge.saturated == 0


def test_sqnr_is_of_all_batches_together() -> None:
    """Not the mean of theirs: a batch without any error would make that infinite."""
    (edge,) = told_report([[1, 2, 3], [100.0]], [[10, 12, 14], [209]]).layers
    assert abs(edge.sqnr_db - 10 * math.log10((1 + 4 + 9 + 10_000) / 0.25)) < 1e-4


def test_sqnr_without_any_error_is_infinite() -> None:
    (edge,) = told_report([[0, 1.5, -4]], [[8, 11, 0]]).layers
    assert edge.sqnr_db == math.inf


def test_sqnr_of_a_broken_network_is_not_a_number() -> None:
    (edge,) = told_report([[math.nan, 1]], [[8, 10]]).layers
    assert math.isnan(edge.sqnr_db)


def test_a_value_is_saturated_where_its_nearest_step_is_not_there() -> None:
    """-4.2 and 123.7 are rounded to the ends of what there is; the next ones are cut off."""
    values = [-4.3, -4.2, -4, 0, 123.5, 123.7, 123.8, 1000]
    (edge,) = told_report([values], [[0, 0, 0, 8, 255, 255, 255, 255]]).layers
    assert edge.saturated == 3 / 8


def test_the_saturated_share_is_of_all_values_of_all_batches() -> None:
    (edge,) = told_report([[1000.0], [1, 2, 3]], [[255], [10, 12, 14]]).layers
    assert edge.saturated == 1 / 4


def test_agreement_is_the_share_of_images_with_the_same_label() -> None:
    labels = [([0, 1, 2], [0, 3, 2]), ([3], [0]), ([1], [1])]
    result = told_report([[1.0]] * 3, [[10]] * 3, labels)
    assert (result.agreement, result.images) == (3 / 5, 5)


def test_no_images_are_an_error() -> None:
    with pytest.raises(MiniresError, match="no images"):
        told_report([], [])


def test_an_edge_that_is_all_zero_in_float_has_no_signal() -> None:
    (edge,) = told_report([[0.0, 0.0]], [[8, 9]]).layers
    assert edge.sqnr_db == -math.inf


# A real network


@pytest.fixture(scope="module")
def fp32() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict())


@pytest.fixture(scope="module")
def images() -> list[Array]:
    """Small values, so that 50 times as much is still a legal input."""
    return [np.float32(0.03) * seeded_input((n, 3, 32, 32), n) for n in (1, 2)]


@pytest.fixture(scope="module")
def int8(fp32: ResNet50, images: list[Array]) -> ResNet50:
    return quantize_model(fp32, calibrate(fp32, images, "minmax"))


@pytest.fixture(scope="module")
def result(fp32: ResNet50, int8: ResNet50, images: list[Array]) -> Report:
    return report(fp32, int8, iter(images))


def test_edges_are_listed_in_the_order_they_run(result: Report, fp32: ResNet50) -> None:
    names = [edge.name for edge in result.layers]
    assert names == [layer.name for layer in fp32.layers if layer.op != "linear"]
    assert len(names) == len(quantized_edges(fp32.layers)) + 1  # and the max-pool


def test_rows_are_what_float64_makes_of_the_same_outputs(
    result: Report, fp32: ResNet50, int8: ResNet50, images: list[Array]
) -> None:
    real: dict[str, list[Array]] = {}
    steps: dict[str, list[Array]] = {}
    for x in images:
        for model, outputs in (fp32, real), (int8, steps):
            for step in model.steps(x):
                outputs.setdefault(step.name, []).append(step.output.astype(np.float64).ravel())
    for edge in result.layers:
        y, q = np.concatenate(real[edge.name]), np.concatenate(steps[edge.name])
        scale, zero_point = int8[edge.name].qparams or (np.float32(0), 0)
        noise = y - float(scale) * (q - zero_point)
        assert abs(edge.sqnr_db - 10 * np.log10((y @ y) / (noise @ noise))) < 1e-3
        assert 5 < edge.sqnr_db < 70
    same = [fp32(x).argmax(axis=1) == int8(x).argmax(axis=1) for x in images]
    assert (result.agreement, result.images) == (np.concatenate(same).mean(), 3)


def test_nothing_that_minmax_saw_is_saturated(result: Report) -> None:
    assert {edge.saturated for edge in result.layers} == {0.0}


def test_values_far_beyond_those_calibrated_on_are_saturated(
    fp32: ResNet50, int8: ResNet50, images: list[Array], result: Report
) -> None:
    louder = [50 * x for x in images]
    loud = report(fp32, int8, louder)
    rows = {edge.name: edge for edge in loud.layers}
    scale, zero_point = int8["input"].qparams or (np.float32(0), 0)
    values = np.concatenate([x.ravel() for x in louder]).astype(np.float64)
    low, high = (float(scale) * (end - zero_point) for end in (-0.5, 255.5))
    assert abs(rows["input"].saturated - np.mean((values < low) | (values > high))) < 1e-4
    assert rows["input"].saturated > 0.95
    assert 0.1 < rows["conv1"].saturated < 1  # the ReLU's zeros are never beyond
    quiet = {edge.name: edge.sqnr_db for edge in result.layers}
    assert rows["input"].sqnr_db < 1 < 30 < quiet["input"]


# As text


def test_a_report_is_a_table_with_the_labels_below() -> None:
    layers = [
        LayerReport("input", 47.26, 0.0),
        LayerReport("layer4.0.downsample.0", math.inf, 0.012345),
        LayerReport("avgpool", -3.04, 1.0),
    ]
    assert format_report(Report(layers, 0.875, 16)).splitlines() == [
        "edge                   SQNR (dB)   saturated",
        "input                       47.3     0.0000%",
        "layer4.0.downsample.0        inf     1.2345%",
        "avgpool                     -3.0   100.0000%",
        "FP32 and INT8 agree on 87.5% of 16 images",
    ]


def test_a_real_reports_columns_are_straight(result: Report) -> None:
    lines = format_report(result).splitlines()
    assert len(lines) == 1 + len(result.layers) + 1
    assert {len(line) for line in lines[:-1]} == {44}


# Logits


def test_the_noise_of_logits_is_known_where_it_was_made() -> None:
    """A tenth of the signal is 20 dB; equal logits have no noise, and a shift no divergence."""
    right = seeded_input((1, 3, 32, 32)).reshape(32, 96)
    assert logit_noise(right, right) == (np.inf, 0)
    assert logit_noise(1.1 * right, right).sqnr_db == pytest.approx(20, abs=1e-4)
    assert abs(logit_noise(right + 5, right).kl) < 1e-9
    even, told = np.float32([[0, 0]]), np.float32([[0, np.log(3)]])
    assert logit_noise(told, even).kl == pytest.approx(0.5 * np.log(4 / 3), abs=1e-6)
    assert logit_noise(np.float32([[1000, -1000]]), even).kl > 100
