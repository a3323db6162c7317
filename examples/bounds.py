"""What a machine's papers allow, beside what is claimed of it: the appendix's arithmetic."""

import textwrap

import numpy as np
from machines import BYTES, Claim, Machine

from minires.model import resnet50_layers
from minires.summary import summarize

GOP = 2 * sum(row.macs for row in summarize(resnet50_layers())) / 1e9  # of one image of 224 x 224
WIDTH = 46  # letters in a line, so that a phone shows all of it
HEAD = f"{'':<11}{'peak':>7}{'memory':>7}{'claim':>7}{'of peak':>8}{'/W':>6}"
LEGEND = f"""\
peak: images a second if all {GOP:.2f} GOP of ResNet-50 v1.5 (224 x 224) ran at the peak. \
memory: if each activation went once each way through the memory, and weights cost nothing. \
claim: what is said of ResNet-50, mostly without saying of which one: v1 has 6% fewer operations. \
/W: images a second by the parts' TDP alone; a GPU needs a host besides. <: less than that. \
Without a claim, /W is what the peak allows."""


def image_bytes(precision: str) -> float:
    """Count what an image moves where each activation goes through the memory once each way.

    Weights are not in it: a large batch shares them.
    """
    layers = resnet50_layers()
    sizes = {row.name: int(np.prod(row.output_shape)) for row in summarize(layers)}
    read = sum(sizes[name] for layer in layers for name in layer.inputs)
    written = sum(sizes.values())
    return BYTES[precision] * float(read + written)


def throughput_bounds(machine: Machine, precision: str) -> tuple[float, float]:
    """Bound the images a second of one part: by its peak, and by its memory.

    By its peak: all multiply-adds at the peak. By its memory: all activations through the memory;
    a cache that holds them lifts this bound.
    """
    by_peak = machine.peaks[precision] * 1e3 / GOP
    by_memory = machine.bandwidth * 1e9 / image_bytes(precision)
    return by_peak, by_memory


def format_machines(machines: list[Machine]) -> str:
    """Lay out what each machine could do, and what is said of it: a narrow table."""
    lines = [HEAD]
    for machine in machines:
        price = f", ${machine.dollars:,.0f}" if machine.dollars else ""
        lines.append(f"{machine.name}: {machine.watts:.0f} W{price}")
        for precision in machine.peaks:
            claims = [claim for claim in machine.claims if claim.precision == precision]
            lines += [_row(machine, precision, claim) for claim in claims or [None]]
    return "\n".join([*lines, "", textwrap.fill(LEGEND, WIDTH)])


def format_sources(machines: list[Machine]) -> str:
    """Say of each figure what it is and where it comes from."""
    lines = []
    for machine in machines:
        lines.append(f"{machine.name}: {machine.kind}. {machine.note}")
        lines += [f"  {_said(claim)}: {claim.kind}; {claim.source}" for claim in machine.claims]
    fill = textwrap.TextWrapper(WIDTH, subsequent_indent="    ", break_long_words=False)
    return "\n".join(fill.fill(line) for line in lines)


def _row(machine: Machine, precision: str, claim: Claim | None) -> str:
    """Judge one claim; where there is none, the bound stands in for it."""
    parts = claim.parts if claim else 1
    by_peak, by_memory = (parts * bound for bound in throughput_bounds(machine, precision))
    images = claim.images_per_second if claim else by_peak
    mark = "" if claim and not claim.upper_limit else "<"
    share = f"{mark}{images / by_peak:.0%}" if claim else ""
    by_watt = f"{mark}{images / parts / machine.watts:.1f}"
    what = f"  {parts} x {precision}"
    said = _said(claim) if claim else ""
    return f"{what:<11}{by_peak:>7.0f}{by_memory:>7.0f}{said:>7}{share:>8}{by_watt:>6}"


def _said(claim: Claim) -> str:
    return f"{'<' if claim.upper_limit else ''}{claim.images_per_second:.0f}"
