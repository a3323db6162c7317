"""Draw what an instruction does in one lane of its registers, for chapter 12."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from minires.measure.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

COLORS = {"a": BLUE, "b": ORANGE, "between": GREY, "sum": GREEN, "cut off": PURPLE}
WIDTH = 4  # of a lane: one unit a byte


def draw_lane(lanes: int, rows: list[tuple[str, list[Any], str]]) -> None:
    """Draw a register with its first lane marked, and beneath it what happens in that lane.

    A row is a name, its values, which share the lane's width, and a key of `COLORS`.
    """
    height = 0.42 * (len(rows) + 1.6)
    _, axes = plt.subplots(figsize=(5.2, height), layout="constrained")
    size = 2 * WIDTH / 16
    for lane in range(lanes):
        axes.add_patch(
            Rectangle((lane * size, 0), size, 0.6, ec=GREY, fc=GREEN if lane == 0 else "none")
        )
    axes.text(-0.2, 0.3, f"{lanes} lanes", ha="right", va="center")
    for x, to in ((0, 0), (size, 2 * WIDTH)):  # the first lane, drawn larger
        axes.plot([x, to], [0.6, 1.1], color=GREY, linewidth=1, linestyle=":")
    for i, (name, values, what) in enumerate(rows):
        width = 2 * WIDTH / len(values)
        axes.text(-0.2, 1.5 + i, name, ha="right", va="center")
        for j, value in enumerate(values):
            box = (j * width + 0.05, 1.1 + i), width - 0.1, 0.8
            axes.add_patch(Rectangle(*box, color=COLORS[what], alpha=0.35, lw=0))
            axes.text((j + 0.5) * width, 1.5 + i, f"{value:,}", ha="center", va="center")
    axes.set(xlim=(-4.6, 8.2), ylim=(len(rows) + 1.1, -0.1))
    axes.axis("off")
