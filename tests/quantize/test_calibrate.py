import tracemalloc

import numpy as np
import pytest

from minires.errors import MiniresError
from minires.model import ResNet50
from minires.quantize.calibrate import calibrate, quantized_edges
from minires.quantize.observers import OBSERVERS
from tests.comparing import Array
from tests.seeded_weights import seeded_input, seeded_state_dict


@pytest.fixture(scope="module")
def model() -> ResNet50:
    return ResNet50.from_state_dict(seeded_state_dict())


@pytest.fixture(scope="module")
def images() -> list[Array]:
    return [seeded_input((1, 3, 32, 32), seed) for seed in range(2)]


def test_every_edge_in_eight_bits_has_a_range(model: ResNet50) -> None:
    edges = quantized_edges(model.layers)
    assert len(edges) == 1 + 53 + 1  # the input, the convolutions, the average pool
    assert edges[:3] == ["input", "conv1", "layer1.0.conv1"]
    assert edges[-2:] == ["layer4.2.conv3", "avgpool"]


def test_minmax_notes_what_the_fp32_network_computes(model: ResNet50, images: list[Array]) -> None:
    calibration = calibrate(model, images, "minmax")
    assert (calibration.observer, calibration.images) == ("minmax", 2)
    assert list(calibration.ranges) == list(calibration.saturated) == quantized_edges(model.layers)
    outputs: dict[str, list[Array]] = {}
    for x in images:
        for step in model.steps(x):
            outputs.setdefault(step.name, []).append(step.output)
    for name, limits in calibration.ranges.items():
        seen = np.concatenate(outputs[name])
        assert limits == (min(float(seen.min()), 0), max(float(seen.max()), 0))
    assert set(calibration.saturated.values()) == {0.0}


@pytest.mark.parametrize("observer", OBSERVERS)
def test_relu_edges_start_at_zero(model: ResNet50, images: list[Array], observer: str) -> None:
    calibration = calibrate(model, images, observer)
    relu = {layer.name for layer in model.layers if layer.relu}
    for name, (low, high) in calibration.ranges.items():
        assert low <= 0 < high
        assert low == 0 or name not in relu | {"avgpool"}
        assert 0 <= calibration.saturated[name] < 0.01
    assert calibration.ranges["layer1.0.downsample.0"][0] < 0


def test_batches_and_single_images_give_the_same_ranges(
    model: ResNet50, images: list[Array]
) -> None:
    """Up to what another shape of the same product rounds differently in BLAS."""
    one_by_one = calibrate(model, images, "minmax")
    at_once = calibrate(model, [np.concatenate(images)], "minmax")
    assert one_by_one.images == at_once.images == 2
    for name, limits in one_by_one.ranges.items():
        np.testing.assert_allclose(limits, at_once.ranges[name], rtol=1e-4)


def test_images_are_taken_one_by_one_and_none_is_kept(model: ResNet50) -> None:
    """From a generator; what is held at the end does not grow with the images."""

    def held_after(count: int) -> int:
        tracemalloc.start()
        calibration = calibrate(
            model, (seeded_input((1, 3, 32, 32), seed) for seed in range(count)), "minmax"
        )
        assert calibration.images == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = held_after(1), held_after(4)
    assert many < 1.2 * few


def test_no_images_are_an_error(model: ResNet50) -> None:
    with pytest.raises(MiniresError, match="no images"):
        calibrate(model, [])


def test_an_unknown_observer_is_an_error_that_names_those_there_are(
    model: ResNet50, images: list[Array]
) -> None:
    with pytest.raises(MiniresError, match=r"'maximum'.*minmax.*percentile.*entropy.*mse"):
        calibrate(model, images, "maximum")


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_weights_are_an_error(
    model: ResNet50, images: list[Array], observer: str, bad: float
) -> None:
    conv1 = model.params["conv1"]._replace(bias=np.full(64, bad, np.float32))
    model = ResNet50(model.layers, {**model.params, "conv1": conv1}, "fp32", model.meta)
    with pytest.raises(MiniresError, match="NaN or infinity"):
        calibrate(model, images, observer)


def test_a_broken_image_is_an_error(model: ResNet50) -> None:
    with pytest.raises(MiniresError, match="values up to nan"):
        calibrate(model, [np.full((1, 3, 32, 32), np.nan, np.float32)])


def test_moments_are_those_of_every_layer_with_weights(
    model: ResNet50, images: list[Array]
) -> None:
    assert calibrate(model, images, "minmax").moments == {}
    calibration = calibrate(model, images, "minmax", moments=True)
    layers = [layer for layer in model.layers if layer.op in ("conv", "linear")]
    assert list(calibration.moments) == [layer.name for layer in layers]
    for layer in layers:
        seen, K = calibration.moments[layer.name], layer.kernel**2 * layer.in_c
        assert (seen.total.shape, seen.images) == ((K,), 2)
        assert sum(end - start for start, end in seen.products) == K
        for (start, end), products in seen.products.items():
            assert products.shape == (end - start, end - start)
    averaged = np.concatenate([step.output for x in images for step in model.steps(x)
                               if step.op == "avgpool"])  # fmt: skip
    np.testing.assert_allclose(calibration.moments["fc"].mean(), averaged.mean(axis=0), rtol=1e-5)
    assert set(calibration.stored()) == {"ranges", "saturated", "observer", "images"}
