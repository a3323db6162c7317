import pytest

from minires.measure import stopwatch


@pytest.mark.parametrize(
    ("images", "seconds", "said"),
    [(1, 28.0, "1 image in 28.00 s, 0.036 a second:"), (300, 2.0, "300 images in 2.00 s, 150.0 a")],
)
def test_a_speed_is_a_number_however_slow(
    images: int, seconds: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: 0.0)
    watch = stopwatch.Stopwatch()
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: seconds)
    assert watch.tell(images).startswith(said)
