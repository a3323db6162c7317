"""The command ``minires quantize``: float weights in, an INT8 file and its price out."""

import functools
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from minires import api, download, options
from minires.errors import MiniresError
from minires.layers import Array
from minires.measure import plots
from minires.model import ResNet50
from minires.notice import complain, progress_bar
from minires.options import Parser
from minires.quantize import OBSERVERS, calibrate, quantize_model, save_int8
from minires.quantize.convert import keep_layers
from minires.quantize.correction import CORRECTIONS
from minires.quantize.default import RECIPE, default_batches, stored_calibration
from minires.quantize.int8_file import int8_size
from minires.quantize.photographs import ENOUGH, Photographs, choose_photographs
from minires.quantize.report import format_report, report
from minires.quantize.rounding import ROUNDINGS
from minires.quantize.sensitivity import format_sensitivity, plot_sensitivity, sensitivity
from minires.writing import check_writable


def add_quantize(parser: Parser) -> None:
    """Add the options of `quantize`."""
    options.weights(parser)
    options.own_network(parser)
    options.offline(parser)
    text = "photographs like those to come. Default: the weights' own ranges, or the package's few"
    parser.add_argument("--calibrate", type=options.path, metavar="FOLDER", help=text)
    # What none of these three is given for is done as classify does it.
    text = "how a range is chosen"
    parser.add_argument("--observer", choices=tuple(OBSERVERS), help=text)
    text = "how weights become integers"
    parser.add_argument("--rounding", choices=tuple(ROUNDINGS), help=text)
    text = "how biases make up for what rounding does to a mean"
    parser.add_argument("--correction", choices=tuple(CORRECTIONS), help=text)
    text = f"how many of the folder, evenly spread over it. Default: {ENOUGH}"
    parser.add_argument("--images", type=options.at_least(1), metavar="N", help=text)
    text = "layers whose weights stay in float32, such as conv1 fc"
    parser.add_argument("--keep", nargs="+", default=(), metavar="LAYER", help=text)
    text = "tell what is gained, layer by layer, where one layer's weights stay float32"
    parser.add_argument("--sensitivity", action="store_true", help=text)
    options.plot(parser)
    text = "the .safetensors file to write"
    parser.add_argument(
        "-o", "--output", type=options.path, required=True, metavar="FILE", help=text
    )


def quantize(arguments: Namespace) -> int:
    """Turn float32 weights into an INT8 file, and report what that cost."""
    output = arguments.output
    if arguments.images and not arguments.calibrate:
        raise MiniresError(
            "--images counts a folder's photographs; give --calibrate FOLDER with it"
        )
    _check_plot(arguments)
    check_writable(output, 0)
    files = []
    if arguments.calibrate:
        files = choose_photographs(arguments.calibrate, arguments.images or ENOUGH)
    weights = options.chosen_weights(arguments)
    path, _ = download.resolve(weights)
    if output.exists() and output.samefile(path):
        raise MiniresError(f"{output}: holds the weights to quantize; name another file")
    fp32 = api.resnet50(weights, **options.own(arguments))
    layers = keep_layers(fp32.layers, arguments.keep)
    check_writable(output, int8_size(layers))  # now, because calibration takes a while
    preset = fp32.meta["preset"]
    photographs = Photographs(files, preset, lambda error: complain(error, arguments.debug))

    def batches(text: str) -> Iterable[Array]:
        source = photographs if arguments.calibrate else default_batches(preset)
        bar: Iterable[Array] = _bar(text)(source)
        return bar

    int8, images = _make_int8(fp32, batches, arguments)
    save_int8(int8, output)
    print(format_report(report(fp32, int8, batches("comparing with FP32"))))
    if arguments.sensitivity:
        x = np.concatenate(list(batches("reading")))
        gains = sensitivity(fp32, int8, x, _bar("sensitivity"))
        print(format_sensitivity(gains))
        if arguments.plot:
            plot_sensitivity(gains, int8.meta["name"], arguments.plot, arguments.dark)
    megabytes = output.stat().st_size / 1e6
    print(
        f"{output}: {int8.meta['name']}, {megabytes:.1f} MB, calibrated on {images} images or crops"
    )
    return int(bool(photographs.unusable))


def _check_plot(arguments: Namespace) -> None:
    """Refuse a plot that could not be drawn, before anything is measured."""
    if arguments.plot and not arguments.sensitivity:
        raise MiniresError("--plot draws what --sensitivity measures; give that too")
    if arguments.plot:
        plots.check(arguments.plot)
    elif arguments.dark:
        raise MiniresError("--dark is of a plot; give --plot FILE with it")


def _make_int8(
    fp32: ResNet50, batches: Callable[[str], Iterable[Array]], arguments: Namespace
) -> tuple[ResNet50, int]:
    """Calibrate where nothing is stored, or where an option asks for it, and quantize."""
    recipe = (arguments.observer, arguments.rounding, arguments.correction)
    stored = None if arguments.calibrate or any(recipe) else stored_calibration(fp32)
    if stored:
        return quantize_model(fp32, stored, keep=arguments.keep), stored.images
    observer, rounding, correction = (
        given or usual for given, usual in zip(recipe, RECIPE, strict=True)
    )
    plain = (rounding, correction) == ("nearest", "off")
    calibration = calibrate(fp32, batches("calibrating"), observer, moments=not plain)
    bar = _bar("rounding")
    int8 = quantize_model(fp32, calibration, rounding, correction, bar, arguments.keep)
    return int8, calibration.images


def _bar(text: str) -> Callable[..., Any]:
    return functools.partial(progress_bar, text=text, leave=False)
