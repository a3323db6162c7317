"""bfloat16: by the bits, against every neighbour there is."""

from fractions import Fraction

import numpy as np

from minires.reference import round_bf16_ref
from tests.comparing import assert_same
from tests.seeded_weights import uniform


def test_what_is_a_bfloat16_stays() -> None:
    bits = np.arange(2**16, dtype=np.uint32) << 16
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    assert_same(round_bf16_ref(x).view(np.uint32), x.view(np.uint32))  # -0.0 too


def test_the_nearest_is_chosen_and_the_even_one_of_two() -> None:
    """In exact fractions, at and around the middle between two neighbours."""
    halves = np.random.RandomState(0).randint(0x0080, 0x7F00, 300).astype(np.uint32)
    for tail in (0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (halves << 16 | tail).view(np.float32)
        for value, half, y in zip(x, halves, round_bf16_ref(x), strict=True):
            lower, upper = (np.array([half + i], np.uint32) << 16 for i in (0, 1))
            low, high = (Fraction(float(b.view(np.float32)[0])) for b in (lower, upper))
            below, above = Fraction(float(value)) - low, high - Fraction(float(value))
            nearest = low if below < above or (below == above and half % 2 == 0) else high
            assert Fraction(float(y)) == nearest


def test_the_error_is_at_most_its_half_step() -> None:
    x = uniform(-10, 10, (10_000,), 0)
    assert np.all(np.abs(round_bf16_ref(x) - x.astype(np.float64)) <= 2.0**-8 * np.abs(x))


def test_what_rounds_beyond_the_largest_is_infinite() -> None:
    assert round_bf16_ref(np.array([3.4e38], np.float32))[0] == np.inf
