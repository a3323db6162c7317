import itertools

import numpy as np
import pytest

from minires.layers import Layer
from minires.quantize import rounding
from minires.quantize.moments import GROUP, Moments
from minires.quantize.rounding import round_gptq, round_nearest
from tests.comparing import Array, assert_same
from tests.seeded_weights import uniform


def moments_of(x: Array) -> Moments:
    seen = Moments()
    seen.observe(Layer("fc", "linear", ("x",), x.shape[1], 1), x)
    return seen


def alike(rows: int, K: int, seed: int) -> Array:
    """Inputs after a ReLU that rise and fall together, as a network's do."""
    mixing = uniform(-1, 1, (8, K), seed)
    return np.maximum(uniform(-1, 1, (rows, 8), seed + 1) @ mixing + 0.2, 0).astype(np.float32)


def test_the_nearest_step_is_taken_within_seven_bits_and_a_sign() -> None:
    steps = np.float32([[-300, -127.4, -0.5, 0.4, 0.6, 1.5, 126.6, 127.6]])
    assert round_nearest(steps).tolist() == [[-127, -127, 0, 0, 1, 2, 127, 127]]


def test_of_two_equal_inputs_one_weight_makes_up_for_the_other() -> None:
    """0.4 + 0.4 is nearest to 1, but each 0.4 is nearest to 0."""
    x = np.float32([[1, 1], [2, 2], [3, 3]])
    steps = np.float32([[0.4, 0.4]])
    assert sorted(round_gptq(steps, moments_of(x))[0]) == [0, 1]


def test_weights_of_inputs_that_have_nothing_in_common_go_to_the_nearest() -> None:
    steps = uniform(-127, 127, (7, 30), 0)
    x = np.diag(uniform(1, 9, (30,), 1)).astype(np.float32)
    assert_same(round_gptq(steps, moments_of(x)), round_nearest(steps))


def test_each_group_is_rounded_as_if_it_were_a_layer() -> None:
    """So a group that is no better than its nearest steps does not spoil what another gains."""
    steps, x = uniform(-127, 127, (8, GROUP + 60), 12), alike(400, GROUP + 60, 13)
    x[:, GROUP:] = 0
    rounded = round_gptq(steps, moments_of(x))
    assert_same(rounded[:, :GROUP], round_gptq(steps[:, :GROUP], moments_of(x[:, :GROUP])))
    assert_same(rounded[:, GROUP:], round_nearest(steps[:, GROUP:]))


def test_groups_that_err_less_but_more_together_go_to_the_nearest() -> None:
    """The second group repeats inputs of the first, and its nearest errors undo those of the first.

    GPTQ would spend the first group's other weights on errors that are no more there.
    """
    K = GROUP + 60
    x, steps = alike(100, K, 14), np.rint(uniform(-100, 100, (8, K), 15))
    x[:, GROUP:] = x[:, :60]
    part = uniform(-0.4, 0.4, (8, 60), 16).astype(np.float32)
    steps[:, :60] += part
    steps[:, GROUP:] -= part
    assert (
        round_gptq(steps[:, :GROUP], moments_of(x[:, :GROUP])) != np.rint(steps[:, :GROUP])
    ).any()
    assert_same(round_gptq(steps, moments_of(x)), round_nearest(steps))


@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_no_channel_of_many_groups_errs_more_over_all_of_them(rows: int) -> None:
    steps, x = uniform(-127, 127, (40, 2 * GROUP + 60), 17), alike(rows, 2 * GROUP + 60, 18)
    seen = moments_of(x)
    better = round_gptq(steps, seen)
    error = seen.sampled_error(steps - better)
    assert (error <= seen.sampled_error(steps - round_nearest(steps))).all()
    whole = np.square((steps - better) @ x.T).mean()
    assert whole < 0.5 * np.square((steps - round_nearest(steps)) @ x.T).mean()


@pytest.mark.parametrize("K", [1, 5, 63, 64, 65, 300])
def test_no_channel_errs_more_and_all_together_far_less(K: int) -> None:
    steps, seen = uniform(-127, 127, (40, K), 2), moments_of(alike(500, K, 3))
    better = round_gptq(steps, seen)
    assert_same(better, np.rint(better))
    assert np.abs(better).max() <= 127
    error, before = seen.error(steps - better), seen.error(steps - round_nearest(steps))
    assert (error <= before).all()
    assert K < 100 or error.sum() < 0.2 * before.sum()


def test_it_is_what_the_definition_says_weight_by_weight() -> None:
    """Algorithm 1 of the paper, with its inverse: largest first, the others compensated."""
    K = 20
    steps, seen = uniform(-100, 100, (6, K), 5), moments_of(alike(400, K, 6))
    (products,) = seen.products.values()
    hessian = products.astype(np.float64)
    hessian += np.eye(K) * rounding.DAMPING * np.diag(hessian).mean()
    wanted, rounded = steps.astype(np.float64), np.zeros_like(steps)
    left = list(np.argsort(np.diag(products), kind="stable"))
    while left:
        at = left[-1]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])[-1]  # the row of `at`
        rounded[:, at] = np.clip(np.rint(wanted[:, at]), -127, 127)
        error = (wanted[:, at] - rounded[:, at]) / inverse[-1]
        wanted[:, left] -= np.outer(error, inverse)
        left.pop()
    better = seen.error(steps - rounded) < seen.error(steps - round_nearest(steps))
    rounded = np.where(better[:, np.newaxis], rounded, round_nearest(steps))
    assert np.mean(round_gptq(steps, seen) == rounded) > 0.98  # float32 may round a tie otherwise


def test_two_weights_are_rounded_as_well_as_can_be() -> None:
    """Of all pairs of integers around, none does better than the one found, damping aside."""
    x = alike(200, 2, 8)
    steps, seen = uniform(-5, 5, (200, 2), 9), moments_of(x)
    found = seen.error(steps - round_gptq(steps, seen))
    pairs = itertools.product(range(-1, 3), repeat=2)
    least = np.min([seen.error(steps - (np.floor(steps) + np.float32(p))) for p in pairs], axis=0)
    assert found.sum() <= 1.5 * least.sum()


@pytest.mark.parametrize(
    "spoil", ["none", "dead", "constant", "one row", "one colour", "huge", "tiny", "broken"]
)
def test_singular_hessians_do_no_harm(spoil: str) -> None:
    """Whatever the inputs: integers in range, and no channel worse than by the nearest steps."""
    K = 60
    x = alike(300, K, 10)
    changed: dict[str, Array] = {
        "none": np.zeros_like(x),
        "dead": x * (np.arange(K) % 3 > 0),
        "constant": np.ones_like(x),
        "one row": x[:1],
        "one colour": np.repeat(x[:1], 300, axis=0),
        "huge": x * np.float32(65504),
        "tiny": x * np.float32(1e-18),
        "broken": x * np.float32(np.nan),
    }
    seen, steps = (
        moments_of(changed.get(spoil, x).astype(np.float32)),
        uniform(-140, 140, (9, K), 11),
    )
    nearest = round_nearest(steps)
    rounded = round_gptq(steps, seen)
    assert_same(rounded, np.clip(np.rint(rounded), -127, 127))
    if spoil in ("none", "broken"):
        assert_same(rounded, nearest)
    else:
        assert (seen.error(steps - rounded) <= seen.error(steps - nearest)).all()
