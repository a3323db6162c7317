"""What a notebook shows: tables, bars, pictures, and parts that fold.

A label or a layer's name may come from a file that somebody else made. So all text is escaped, and
only what these functions have made counts as HTML. Colours are the page's own, light or dark.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

BLUE = "#4c8bc4"  # dark enough for a white page, light enough for a dark one
CELL = "padding:1px 8px;text-align:"


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Lay rows out below their head: numbers to the right, whole ones in groups of three."""
    names = "".join(f'<th style="{CELL}left">{_text(name)}</th>' for name in head)
    lines = ["".join(map(_cell, row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>")


def bar(share: float) -> Html:
    """Draw a share of 1 as a bar, 120 pixels wide where it is all."""
    width = 120 * min(max(share, 0.0), 1.0)
    style = f"background:{BLUE};height:0.8em;width:{width:.1f}px"
    return Html(f'<div style="width:120px"><div style="{style}"></div></div>')


def fold(title: str, *content: str) -> Html:
    """Show a title, and the content below it after a click."""
    below = "".join(map(_text, content))
    return Html(f"<details><summary>{_text(title)}</summary>{below}</details>")


def lines(*content: str) -> Html:
    """Put one below the other."""
    return Html("".join(f"<div>{_text(line)}</div>" for line in content))


def picture(image: Image.Image, description: str) -> Html:
    """Show an image that stands in the page itself, as PNG; its pixels stay square and sharp."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    text = html.escape(description)
    return Html(
        f'<img alt="{text}" title="{text}" style="image-rendering:pixelated" '
        f'width="{image.width}" height="{image.height}" src="data:image/png;base64,{data}">'
    )


def _cell(value: object) -> str:
    number = isinstance(value, int | float)
    return f'<td style="{CELL}{"right" if number else "left"}">{_text(value)}</td>'


def _text(value: object) -> str:
    if isinstance(value, Html):
        return value
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))
