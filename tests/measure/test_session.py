"""The pace and the voice of a measurement: asked for by a with statement, and over with it."""

import pytest

from minires.measure import machine, session
from minires.measure.trust import measure_until_steady


def tries(doubts: list[str]) -> int:
    found: list[int] = []
    measure_until_steady(lambda: found.append(1), lambda _: doubts)
    return len(found)


def test_a_quick_session_measures_less_often() -> None:
    assert session.rounds(20, 6) == 20
    with session.session(quick=True):
        assert session.rounds(20, 6) == 6
        assert session.rounds(4, 6) == 4
        assert tries(["it differs"]) == 1
        assert machine.describe_measurement("a machine").endswith(", measured quickly")
        with session.session(quick=False):
            assert not session.in_a_hurry()
        assert session.in_a_hurry()
    assert not session.in_a_hurry()
    assert tries(["it differs"]) > 1


def test_what_is_measured_is_told_only_where_someone_listens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    session.say("nobody asked")
    with session.session(quick=False):
        session.say("reading L1")
        tries(["it differs"])
    session.say("nobody listens any more")
    more = "minires: once more, because it differs"
    assert capsys.readouterr().err.splitlines() == ["minires: reading L1", more, more]


def test_a_measurement_is_of_a_machine_a_day_and_a_version() -> None:
    where, day, version = machine.describe_measurement("a machine").split(", ")
    assert where == "a machine"
    assert [len(part) for part in day.split("-")] == [4, 2, 2]
    assert version.startswith("minires ")
    assert machine.describe_measurement().startswith(f"{machine.describe_machine()}, ")
