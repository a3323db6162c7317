import numpy as np
import pytest

from minires.layers import FloatParams, Layer
from minires.quantize.convert import BIAS_MOST, quantize_weights
from minires.quantize.correction import CORRECTIONS, correct_mean, correct_shrunk
from minires.quantize.moments import Moments
from minires.reference import QParams
from tests.comparing import Array, assert_same
from tests.seeded_weights import uniform

FC = Layer("fc", "linear", ("x",), 50, 4)


def moments_of(x: Array) -> Moments:
    seen = Moments()
    seen.observe(FC, x)
    return seen


def test_on_average_the_corrected_outputs_are_right() -> None:
    x, errors = uniform(0, 1, (200, 50), 0), uniform(-0.1, 0.1, (4, 50), 1)
    lacking = (x.astype(np.float64) @ errors.T).mean(axis=0)
    np.testing.assert_allclose(correct_mean(errors, moments_of(x)), lacking, rtol=1e-4)
    assert np.abs(lacking).max() > 0.1


def test_a_mean_of_few_images_is_trusted_less() -> None:
    errors = uniform(-0.1, 0.1, (4, 50), 2)
    few, many = (moments_of(uniform(0, 1, (n, 50), 3)) for n in (2, 2000))
    for seen, low, high in (few, 0.0, 1.0), (many, 0.95, 1.0):
        share = correct_shrunk(errors, seen) / correct_mean(errors, seen)
        assert ((low < share) & (share < high)).all()
    share = correct_shrunk(errors, few) / correct_mean(errors, few)
    assert share.min() < 0.95


def test_inputs_that_never_change_are_sure_and_none_at_all_correct_nothing() -> None:
    errors = uniform(-0.1, 0.1, (4, 50), 4)
    constant = moments_of(np.ones((3, 50), np.float32))
    np.testing.assert_allclose(
        correct_shrunk(errors, constant), correct_mean(errors, constant), rtol=0.02
    )
    zero = moments_of(np.zeros((3, 50), np.float32))
    for correct in CORRECTIONS.values():
        assert_same(correct(errors, zero), np.zeros(4, np.float32))


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_bias_takes_the_correction_and_cannot_overflow(correction: str) -> None:
    x = uniform(0, 1, (100, 50), 5) * np.float32(1e6)  # far outside the range
    p = FloatParams(uniform(-1, 1, (4, 50), 6), uniform(-1, 1, (4,), 7))
    xq = QParams(np.float32(1e-5), 3)
    seen = moments_of(x)
    w_s8, w_scale, bias_s32 = quantize_weights(p, xq, "gptq", correction, seen)
    steps = bias_s32 + 3 * w_s8.sum(axis=1, dtype=np.int64)
    errors = p.weight - w_s8 * w_scale[:, np.newaxis]
    wanted = (p.bias + CORRECTIONS[correction](errors, seen)) / (np.float64(xq.scale) * w_scale)
    np.testing.assert_allclose(steps, np.clip(np.rint(wanted), -BIAS_MOST, BIAS_MOST), atol=2)
