"""What a machine's papers allow, beside what is claimed of it: the appendix's arithmetic."""

import numpy as np
from machines import BYTES, Claim, Machine

from minires.measure.text import format_columns
from minires.model import resnet50_layers
from minires.summary import summarize

GOP = 2 * sum(row.macs for row in summarize(resnet50_layers())) / 1e9  # of one image of 224 x 224
ALLOWED = ["machine", "precision", "parts", "TOP/s", "by peak", "by memory"]
CLAIMED = ["claimed", "of peak", "/W", "/1000 $"]
LEGEND = f"""\
by peak: images/s if all {GOP:.2f} GOP of ResNet-50 v1.5 (224 x 224) ran at the peak.
by memory: if every activation went through the memory, once each way, and weights
cost nothing. Claims are images/s of ResNet-50 by all parts together, mostly without
saying of which one: v1 has 6% fewer operations. /W: by the parts' TDP alone, and a
GPU needs a host besides. /1000 $: by their list price then. Unclaimed: < by the peak."""


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
    """Lay out a table of what each machine could do and what is said of it, with the sources."""
    rows = []
    notes = []
    for machine in machines:
        notes.append(f"{machine.name}: {machine.kind}.")
        if machine.note:
            notes.append(f"  {machine.note}")
        sources = []
        for precision in machine.peaks:
            claims = [claim for claim in machine.claims if claim.precision == precision]
            rows += [_row(machine, precision, claim) for claim in claims or [None]]
            sources += [f"  {_said(claim)}: {claim.kind}; {claim.source}" for claim in claims]
        notes += dict.fromkeys(sources)  # each once
    return "\n".join([format_columns([*ALLOWED, *CLAIMED], rows), LEGEND, "", *notes])


def _row(machine: Machine, precision: str, claim: Claim | None) -> list[str]:
    """Judge one claim; where there is none, the bound stands in for it."""
    parts = claim.parts if claim else 1
    by_peak, by_memory = (parts * bound for bound in throughput_bounds(machine, precision))
    images = claim.images_per_second if claim else by_peak
    mark = "" if claim and not claim.upper_limit else "<"
    thousands = parts * (machine.dollars or 0) / 1000
    return [
        machine.name,
        precision,
        str(parts),
        f"{parts * machine.peaks[precision]:.1f}",
        f"{by_peak:.0f}",
        f"{by_memory:.0f}",
        _said(claim) if claim else "",
        f"{mark}{images / by_peak:.0%}" if claim else "",
        f"{mark}{images / parts / machine.watts:.1f}",
        f"{mark}{images / thousands:.0f}" if thousands else "",
    ]


def _said(claim: Claim) -> str:
    return f"{'<' if claim.upper_limit else ''}{claim.images_per_second:.0f}"
