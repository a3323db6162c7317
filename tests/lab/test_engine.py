"""The engine in a real browser: its numbers are those of the definitions."""

import json
import runpy
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minires
from minires.lab import export
from minires.lab.serve import make_server, site
from minires.layers import Array
from minires.model import ResNet50, Step
from minires.preprocess import normalize, resize_and_crop
from minires.reference import QParams
from tests.comparing import assert_close, assert_same, gemm_bound
from tests.lab.browser import PROGRAM, Browser
from tests.lab.firefox import PROGRAM as FIREFOX
from tests.lab.firefox import Firefox

ROOT = Path(__file__).parents[2]
SIDE = 64
INT8 = "'/weights/int8.safetensors'"
EMPTY = b'<!doctype html><link rel="icon" href="data:,"><title>A test</title>'
# A layer, and where to look: y, x and channel. Some have padding, a stride or a residual.
PIXELS = [
    ("conv1", 0, 0, 5), ("conv1", 31, 31, 63), ("layer1.0.conv2", 0, 3, 9),
    ("layer1.0.conv3", 5, 5, 200), ("layer2.0.conv2", 7, 7, 30),
    ("layer2.0.downsample.0", 3, 4, 400), ("layer4.2.conv3", 1, 0, 2047), ("fc", 0, 0, 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> Array:
    """The cat, and 20 of CIFAR-10's test images, or made-up ones: (21, 64, 64, 3) bytes."""
    preset = minires.get_weights("CIFAR10").preset
    try:
        archive = request.getfixturevalue("test_data") / "cifar10" / "cifar10.tar.xz"
        read = runpy.run_path(str(ROOT / "benchmarks" / "cifar10_accuracy.py"))["read_test_images"]
        categories = minires.get_weights("CIFAR10").meta["categories"]
        small = list(read(archive, categories, 2)[0])
    except pytest.skip.Exception:
        small = list(np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), np.uint8))
    pictures = [Image.open(export.find_cat()), *map(Image.fromarray, small)]
    return np.stack([resize_and_crop(picture, preset) for picture in pictures])


@pytest.fixture(scope="module")
def models() -> dict[str, ResNet50]:
    return {name: minires.resnet50("CIFAR10", name, "numpy") for name in ("int8", "fp32")}


@pytest.fixture(scope="module")
def address(images: Array) -> Iterator[str]:
    files = site(export.export_network())
    files |= {
        "test.html": EMPTY,
        "images.rgb": images.tobytes(),
        "cat.jpg": export.find_cat().read_bytes(),
    }
    with make_server(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module", params=[(Browser, PROGRAM), (Firefox, FIREFOX)],
                ids=["chromium", "firefox"])  # fmt: skip
def browser(
    address: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Browser | Firefox]:
    kind, program = request.param
    if program is None:
        pytest.skip("there is no such browser here")
    with kind(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(f"{address}test.html")
        opened.run("""(async () => {
            globalThis.engine = await import('/engine/network.js');
            globalThis.pictures = await import('/engine/preprocess.js');
            globalThis.images = new Uint8Array(await (await fetch('/images.rgb')).arrayBuffer());
            globalThis.image = i => images.subarray(i * 12288, (i + 1) * 12288);
            globalThis.networks = {};
            globalThis.network = async (precision, relaxed) => networks[precision + relaxed] ??=
                engine.openNetwork(`/weights/${precision}.safetensors`, {precision, relaxed});
            globalThis.other = async (precision, weights) => {
                const plan = await (await fetch(`/weights/${precision}.json`)).json();
                return engine.openNetwork(`/weights/${weights}.safetensors`, {precision, plan});
            };
            globalThis.told = promise => promise.then(() => 'nothing', error => error.message);
        })()""")
        yield opened


def answer(browser: Browser | Firefox, script: str) -> Any:
    """Run a script in the page that may wait; what it returns comes as JSON."""
    return json.loads(
        browser.run(f"(async () => JSON.stringify(await (async () => {{{script}}})()))()")
    )


def logits(browser: Browser | Firefox, precision: str, relaxed: bool, count: int) -> Array:
    told = answer(browser, f"""
        const net = await network('{precision}', {json.dumps(relaxed)});
        const runs = Array.from({{length: {count}}}, (_, i) => net.run(image(i), 64, 64));
        return runs.map(run => [...run.logits]);
    """)  # fmt: skip
    return np.array(told, np.float32)


def batch(images: Array) -> Array:
    preset = minires.get_weights("CIFAR10").preset
    return np.stack([normalize(image, preset) for image in images])


def test_int8_has_the_bits_of_the_definition(
    browser: Browser | Firefox, images: Array, models: dict[str, ResNet50]
) -> None:
    expected = models["int8"](batch(images))
    assert len(set(expected.argmax(1).tolist())) > 3  # not one answer for all
    for relaxed in False, True:
        assert_same(logits(browser, "int8", relaxed, len(images)), expected)


def test_fp32_is_near_the_definition(
    browser: Browser | Firefox, images: Array, models: dict[str, ResNet50]
) -> None:
    """Sums of up to 4608 products in another order: a few parts in a million of the largest."""
    expected = models["fp32"](batch(images[:3]))
    for relaxed in False, True:
        assert_close(logits(browser, "fp32", relaxed, 3), expected, 2e-5 * np.abs(expected).max())


def test_the_relaxed_instructions_are_used_where_the_browser_has_them(
    browser: Browser | Firefox,
) -> None:
    told = answer(browser, """
        const hows = [['int8', true], ['fp32', true], ['int8', false]];
        const nets = await Promise.all(hows.map(how => network(...how)));
        const kernels = nets.map(net => net.kernels);
        return kernels.map(({name, dot, available}) => [name, dot, available.relaxed !== null]);
    """)  # fmt: skip
    for name, dot, relaxed in told[:2]:
        assert ("relaxed" in name) == relaxed
        assert dot in ((129540, 65534, -508) if relaxed else (None,))
    assert told[2][0] == "i32x4.dot_i16x8_s"


@pytest.fixture(scope="module")
def steps(images: Array, models: dict[str, ResNet50]) -> dict[str, dict[str, Step]]:
    x = batch(images[:1])
    return {name: {step.name: step for step in model.steps(x)} for name, model in models.items()}


def explained(
    browser: Browser | Firefox, precision: str, place: tuple[str, int, int, int]
) -> dict[str, Any]:
    pixel: dict[str, Any] = answer(browser, f"""
        const net = await network('{precision}', false), run = net.run(image(0), 64, 64);
        const pixel = net.explain(run, ...{json.dumps(place)});
        pixel.inputs = pixel.inputs.map(tap => ({{...tap, x: [...tap.x], w: tap.w && [...tap.w]}}));
        const [name, y, x, channel] = {json.dumps(place)}, step = run.steps.get(name);
        return {{...pixel, kept: step.data[(y * step.width + x) * step.channels + channel]}};
    """)  # fmt: skip
    return pixel


@pytest.mark.parametrize("place", PIXELS, ids=lambda place: "-".join(map(str, place)))
def test_int8_is_explained_with_its_own_numbers(
    browser: Browser | Firefox,
    models: dict[str, ResNet50],
    steps: dict[str, dict[str, Step]],
    place: tuple[str, int, int, int],
) -> None:
    name, y, x, channel = place
    step, pixel = steps["int8"][name], explained(browser, "int8", place)
    output = step.output.reshape(
        1, *(step.output.shape[1:3] if step.output.ndim == 4 else (1, 1)), -1
    )
    assert pixel["value"] == pixel["kept"] == output[0, y, x, channel]
    layer, p = step.layer, models["int8"].params[name]
    pad = layer.padding
    source = step.inputs[0].reshape(
        1, *(step.inputs[0].shape[1:3] if pad or step.op == "conv" else (1, 1)), -1
    )
    border = ((pad, pad), (pad, pad), (0, 0))
    padded = np.pad(source[0], border, constant_values=p.x_qparams.zero_point)
    top, left = y * layer.stride, x * layer.stride
    patch = padded[top : top + layer.kernel, left : left + layer.kernel].reshape(
        layer.kernel**2, -1
    )
    assert np.array_equal([tap["x"] for tap in pixel["inputs"]], patch)
    weights = p.w_s8[channel].reshape(patch.shape)
    assert np.array_equal([tap["w"] for tap in pixel["inputs"]], weights)
    total = int((patch.astype(np.int64) * weights).sum()) + int(p.bias_s32[channel])
    assert (pixel["bias"], pixel["sum"]) == (p.bias_s32[channel], total)
    assert bool(pixel["residual"]) == (len(step.inputs) > 1)


@pytest.mark.parametrize("place", PIXELS, ids=lambda place: "-".join(map(str, place)))
def test_fp32_is_explained_within_its_bound(
    browser: Browser | Firefox, place: tuple[str, int, int, int]
) -> None:
    pixel = explained(browser, "fp32", place)
    assert np.float32(pixel["value"]) == np.float32(pixel["kept"])  # mul, add: in the same order
    if pixel["inputs"] and pixel["inputs"][0]["w"]:
        x, w = (np.array([tap[key] for tap in pixel["inputs"]]).ravel() for key in "xw")
        residual = pixel["residual"]["q"] if pixel["residual"] else 0.0
        exact = x @ w + pixel["bias"] + residual
        magnitude = np.abs(x) @ np.abs(w) + abs(pixel["bias"]) + abs(residual)
        bound = np.array(gemm_bound(len(x), magnitude))
        assert_close(np.array(pixel["scaled"], np.float32), np.array(exact), bound)


def test_a_range_that_is_changed_is_computed_anew_and_can_be_put_back(
    browser: Browser | Firefox, models: dict[str, ResNet50], steps: dict[str, dict[str, Step]]
) -> None:
    """With three bits no step is above 7, and a run can be explained after other runs."""
    few, same, back, pixel, kept = answer(browser, """
        const net = await network('int8', false), name = 'layer2.0.conv2';
        const run = q => net.run(image(0), 64, 64, {overrides: q ? {[name]: q} : {}});
        const few = run({bits: 3, scale: net.qparams[name].scale * 255 / 7});
        const same = run({bits: 8}), back = run();
        const next = few.steps.get('layer2.0.conv3'), pixel = net.explain(few, next.name, 1, 2, 3);
        const kept = next.data[(next.width + 2) * next.channels + 3];
        const {data} = few.steps.get(name);
        return [[...data], [...same.logits], [...back.logits], pixel.value, kept];
    """)  # fmt: skip
    model, step = models["int8"], steps["int8"]["layer2.0.conv2"]
    assert step.layer.qparams is not None
    scale = np.float32(float(step.layer.qparams.scale) * 255 / 7)
    layer = replace(step.layer, qparams=QParams(scale, 0))
    anew = model.operators["int8"]["conv"](layer, model.params[layer.name], *step.inputs)
    assert_same(np.array(few, np.uint8), np.minimum(anew, 7).ravel())
    assert len(set(few)) > 3
    assert pixel == kept
    expected = steps["int8"]["fc"].output[0]
    assert_same(np.float32(same), expected)
    assert_same(np.float32(back), expected)


def test_another_scale_and_zero_point_of_the_image_change_little(
    browser: Browser | Firefox,
) -> None:
    """Its padding and the next layer's bias follow; a mistake there would change every answer."""
    before, after = answer(browser, """
        const net = await network('int8', false), {scale, zeroPoint} = net.qparams.input;
        const input = {scale: scale * 1.25, zeroPoint: zeroPoint - 12};
        const run = overrides => [...net.run(image(0), 64, 64, {overrides}).logits];
        return [run({}), run({input})];
    """)  # fmt: skip
    assert np.abs(np.subtract(before, after)).max() < 0.15 * np.abs(before).max()
    assert before != after


def test_numbers_round_half_to_even_and_halves_are_read(browser: Browser | Firefox) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    values = [*np.arange(-3, 3.5, 0.5).tolist(), 0.49999999999999994, 2.5000001, 254.5]
    rounded, bits = answer(browser, f"""
        const {{rint}} = await import('/engine/numbers.js');
        const {{fromHalves}} = await import('/engine/safetensors.js');
        const floats = fromHalves(Uint16Array.from({{length: 65536}}, (_, i) => i));
        return [{values}.map(rint), [...new Uint32Array(floats.buffer)]];
    """)  # fmt: skip
    assert rounded == np.rint(values).tolist()
    floats, expected = np.array(bits, np.uint32).view(np.float32), halves.view(np.float16)
    assert np.array_equal(floats, expected.astype(np.float32), equal_nan=True)


def test_a_photograph_is_prepared_as_minires_does(
    browser: Browser | Firefox, images: Array
) -> None:
    """Pillow's resizing, bit for bit; a browser's own JPEG decoder may differ by a level."""
    pixels = answer(browser, """
        const net = await network('int8', false);
        const cat = await pictures.decode(await (await fetch('/cat.jpg')).blob());
        const {pixels, height, width} = pictures.preprocess(cat, net.preset);
        const example = pictures.preprocess(await pictures.example(), net.preset);
        return [[...pixels], [...example.pixels], [height, width]];
    """)  # fmt: skip
    assert pixels[2] == [SIDE, SIDE]
    assert np.array_equal(pixels[1], images[0].ravel())
    assert np.abs(np.subtract(pixels[0], images[0].ravel())).max() <= 1


def picture(width: int, height: int) -> str:
    """Make a picture in a page, and return it as a data address."""
    return f"""await (async () => {{
        const canvas = new OffscreenCanvas({width}, {height}), context = canvas.getContext('2d');
        context.fillStyle = 'teal'; context.fillRect(0, 0, {width}, {height});
        return canvas.convertToBlob();
    }})()"""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("pictures.decode(new Blob(['no image']))", "no image"),
        (f"pictures.decode({picture(10_100, 10_000)})", "10100 x 10000 pixels"),
        (f"pictures.decode({picture(3000, 2)})", "not so long"),
        ("other('int8', 'fp32')", "not INT8 weights of minires"),
        ("other('fp32', 'int8')", "conv1.weight is missing"),
        ("engine.openNetwork('/images.rgb', {plan: {precision: 'int8'}})", "no whole safetensors"),
        (f"engine.openNetwork({INT8}, {{precision: 'fp32'}})", "is for int8, not for fp32"),
        ("network('int8', false).then(net => net.run(image(0), 32, 32))", "laid out for 64 x 64"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_sentence(
    browser: Browser | Firefox, script: str, words: str
) -> None:
    told = answer(browser, f"return await told({script});")
    assert words in told
    assert told.endswith(".")
    assert "\n" not in told


@pytest.mark.parametrize("lacking", ["{validate: () => false}", "undefined"])
def test_a_browser_without_simd_is_told_so(browser: Browser | Firefox, lacking: str) -> None:
    told = answer(browser, f"""
        const whole = WebAssembly;
        globalThis.WebAssembly = {lacking};
        try {{ return await told(engine.openNetwork({INT8})); }}
        finally {{ globalThis.WebAssembly = whole; }}
    """)  # fmt: skip
    assert "no WebAssembly with SIMD" in told


def test_the_page_logs_no_error_and_asks_for_nothing_else(
    browser: Browser | Firefox, address: str
) -> None:
    """After all of the above, in the same page."""
    assert browser.errors == []
    assert browser.requests
    assert [
        url for url in browser.requests if not url.startswith((address, "blob:", "data:"))
    ] == []


def test_a_fetch_that_breaks_off_is_told(browser: Browser | Firefox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def break_off() -> None:
            reader, _ = server.accept()
            with reader:
                reader.recv(4096)
                reader.sendall(b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\n"
                               b"Content-Length: 1000\r\n\r\n0123456789")  # fmt: skip

        threading.Thread(target=break_off, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.safetensors"
        told = answer(
            browser,
            f"return await told(engine.openNetwork('{url}', {{plan: {{precision: 'int8'}}}}));",
        )
    assert f"{url} broke off after" in told
