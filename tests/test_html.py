import base64
import io
import re

import numpy as np
from PIL import Image

from minires.html import Html, bar, fold, lines, picture, table

ATTACK = '<script>alert("1")</script>'
ESCAPED = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;"


def test_text_from_outside_is_escaped_wherever_it_stands() -> None:
    image = Image.new("L", (1, 1))
    for made in (
        table([ATTACK], []),
        table(["name"], [[ATTACK]]),
        fold(ATTACK),
        fold("title", ATTACK),
        lines(ATTACK),
        picture(image, ATTACK),
    ):
        assert ESCAPED in made
        assert "<script" not in made


def test_what_is_html_already_is_left_as_it_is() -> None:
    inner = table(["a"], [[1]])
    for outer in fold("title", inner), lines(inner), table(["a"], [[inner]]):
        assert inner in outer
        assert isinstance(outer, Html)


def test_numbers_stand_to_the_right_in_groups_of_three() -> None:
    cells = re.findall(r"text-align:(\w+)\">([^<]*)</td>", table(["a", "b"], [["x", 1234567]]))
    assert cells == [("left", "x"), ("right", "1,234,567")]


def test_a_bar_is_as_long_as_its_share() -> None:
    widths = [re.findall(r"width:([\d.]+)px\"><", bar(share))[-1] for share in (0.25, 0, 7)]
    assert [float(width) for width in widths] == [30, 0, 120]


def test_a_picture_is_the_image() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    made = picture(Image.fromarray(pixels), "twelve pixels")
    data = base64.b64decode(made.split("base64,")[1].split('"')[0])
    assert 'alt="twelve pixels"' in made
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
