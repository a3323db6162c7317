"""Draw what one inner step of a rung touches in memory, for chapter 10."""

import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

from minires.measure.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, YELLOW

# What one inner step touches, in a matrix product of 8 rows, 16 columns and 6 steps along K, whose
# vectors have 4 lanes: the matrix, its rows, its columns, and what happens to them.
SIZES = {"A": (8, 6), "B": (6, 16), "C": (8, 16), "x": (8, 6)}
CORNERS = {"A": (7, 0), "B": (0, 7), "C": (7, 7), "x": (7, 0)}
WHAT = {
    "in the second cache": SKY,
    "loaded": BLUE,
    "stored": ORANGE,
    "loaded, then stored": PURPLE,
    "in registers": GREEN,
    "fetched for later": YELLOW,
    "the first core's": BLUE,
    "the second core's": ORANGE,
}
OPAQUE = {"in the second cache": 0.35}  # 1 for all others
Area = tuple[str, slice, slice, str]
ALL = slice(0, 16)
STEP = [  # of the microkernel: a tile of 6 rows and 2 vectors
    ("A", slice(0, 6), slice(2, 3), "loaded"),
    ("B", slice(2, 3), slice(0, 8), "loaded"),
    ("C", slice(0, 6), slice(0, 8), "in registers"),
]
PICTURES: dict[str, list[Area]] = {
    "loops": [
        ("A", slice(3, 4), slice(2, 3), "loaded"),
        ("B", slice(2, 3), slice(5, 6), "loaded"),
        ("C", slice(3, 4), slice(5, 6), "stored"),
    ],
    "ordered": [
        ("A", slice(3, 4), slice(2, 3), "in registers"),
        ("B", slice(2, 3), slice(4, 8), "loaded"),
        ("C", slice(3, 4), slice(4, 8), "loaded, then stored"),
    ],
    "tiled": [
        ("A", slice(0, 4), slice(0, 4), "in registers"),
        ("B", slice(0, 4), slice(4, 8), "loaded"),
        ("C", slice(0, 4), slice(4, 8), "loaded, then stored"),
    ],
    "panels": [
        ("A", slice(0, 4), slice(2, 3), "loaded"),
        ("B", slice(2, 3), slice(0, 8), "loaded"),
        ("C", slice(0, 4), slice(0, 8), "in registers"),
    ],
    "vector": STEP,
    "fused": [("C", slice(0, 6), slice(0, 8), "stored")],
    "blocks": [
        ("A", slice(0, 4), ALL, "in the second cache"),
        ("A", slice(2, 4), slice(2, 3), "loaded"),
        ("B", slice(2, 3), slice(8, 16), "loaded"),
        ("C", slice(2, 4), slice(8, 16), "in registers"),
    ],
    "threads": [
        ("A", slice(0, 4), ALL, "the first core's"),
        ("C", slice(0, 4), ALL, "the first core's"),
        ("A", slice(4, 8), ALL, "the second core's"),
        ("C", slice(4, 8), ALL, "the second core's"),
    ],
    "implicit": [
        *(("x", slice(row, row + 1), slice(2, 5), "loaded") for row in (1, 2, 3)),
        ("C", slice(3, 4), slice(0, 8), "in registers"),
    ],
    "engine": [*STEP, ("B", slice(0, 6), slice(8, 16), "fetched for later")],
}
# The way that the inner loop goes: matrix, row and column where it starts, and where it ends.
WAYS = {
    "loops": [("A", 3.5, 3, 3.5, 6), ("B", 3, 5.5, 6, 5.5)],
    "ordered": [("B", 2.5, 8, 2.5, 14), ("C", 3.5, 8, 3.5, 14)],
    "tiled": [("B", 2, 8, 2, 14), ("C", 2, 8, 2, 14)],
    "panels": [("A", 2, 3, 2, 6), ("B", 3, 4, 6, 4)],
    "vector": [("A", 3, 3, 3, 6), ("B", 3, 4, 6, 4)],
    "fused": [("C", 6, 4, 8, 4)],
    "blocks": [("B", 1, 1, 1, 15)],
    "implicit": [("x", 2.5, 5, 2.5, 6)],
    "engine": [("A", 3, 3, 3, 6), ("B", 3, 4, 6, 4)],
}


def draw(rung: str) -> None:
    """Draw what one inner step of a rung touches."""
    figure, axes = plt.subplots(figsize=(5.4, 3.9), layout="constrained")
    areas = PICTURES[rung]
    for name in "x" if any(area[0] == "x" for area in areas) else "A", "B", "C":
        (top, left), (rows, columns) = CORNERS[name], SIZES[name]
        for row in range(rows):
            for column in range(columns):
                place = left + column, top + row
                axes.add_patch(Rectangle(place, 1, 1, fill=False, ec=GREY, lw=0.5, alpha=0.6))
        text = {"A": "A: rows, K", "B": "B: K, columns", "C": "C: rows, columns", "x": "x: pixels"}
        axes.text(left + columns / 2, top - 0.2, text[name], ha="center", va="bottom")
    for name, of_rows, of_columns, what in areas:
        (top, left), (rows, columns) = CORNERS[name], SIZES[name]
        down, right = of_rows.indices(rows), of_columns.indices(columns)
        size = right[1] - right[0] - 0.16, down[1] - down[0] - 0.16  # so neighbours stand apart
        where = left + right[0] + 0.08, top + down[0] + 0.08
        axes.add_patch(Rectangle(where, *size, color=WHAT[what], alpha=OPAQUE.get(what), lw=0))
    for name, row, column, to_row, to_column in WAYS.get(rung, []):
        top, left = CORNERS[name]
        ends = (left + to_column, top + to_row), (left + column, top + row)
        axes.annotate("", *ends, arrowprops={"arrowstyle": "->", "color": GREY, "lw": 2})
    there = dict.fromkeys(area[3] for area in areas)
    patches = [Patch(color=WHAT[what], alpha=OPAQUE.get(what), label=what) for what in there]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    axes.set(xlim=(-0.2, 23.2), ylim=(15.2, -1.4), aspect="equal")
    axes.axis("off")
    plt.show()
