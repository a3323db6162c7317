"""A row beside its roofs."""

import pytest

from minires.measure.rows import Row
from tests.measure.conftest import ROOFS


def test_what_bounds_a_row_is_the_lower_roof() -> None:
    """Its 100 GOP/s are fed by 100 GB/s from L2 at one operation a byte, by 10 from memory."""
    small = Row("a", "", 1, 20e-9, 1000, 1000, 0, ROOFS)
    assert (small.bound, small.of_roof) == ("compute", pytest.approx(1))
    fewer = small._replace(macs=400)
    assert (fewer.bound, fewer.of_roof) == ("L2", pytest.approx(0.5))
    big = small._replace(bytes=2**28, macs=2**28)
    assert (big.bound, big.least["memory"]) == ("memory", pytest.approx(2**28 / 10e9))
    assert big._replace(calls=2**10, macs=2**30).bound == "compute"  # a call's bytes are in L2
    # All weights together do not fit L2: each layer's come from the memory.
    far = fewer._replace(weights=500, roofs=ROOFS._replace(weights=2**30))
    assert (far.bound, far.least["memory"]) == ("memory", pytest.approx(5e-9 + 50e-9))
