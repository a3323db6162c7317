"""The page in a browser: each thing that a reader can do, done."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires.lab.serve import PAGE
from tests.lab.browser import Browser
from tests.lab.firefox import PROGRAM as FIREFOX
from tests.lab.firefox import Firefox

IMAGE = Path(__file__).parents[2] / "examples/images/cat.jpg"


def test_the_javascript_can_be_read_in_one_sitting() -> None:
    lines = {path: path.read_text(encoding="utf-8").splitlines() for path in PAGE.rglob("*.js")}
    assert {"lab.js", "network.js"} <= {path.name for path in lines}
    assert sum(map(len, lines.values())) <= 1_500
    assert max(map(len, lines.values())) <= 220
    assert max(len(line) for source in lines.values() for line in source) <= 180


def test_the_first_view_is_small(files: Mapping[str, bytes]) -> None:
    """Without the weights, but with the modules: what a phone has to fetch to show the page."""
    later = ("lab.png", "weights/int8.safetensors", "weights/fp32.safetensors", "weights/fp32.json")
    assert set(later) < set(files)
    assert sum(len(content) for name, content in files.items() if name not in later) < 1e6 / 4


@pytest.fixture(scope="module")
def started(browser: Browser, address: str) -> Browser:
    """Return the browser with both networks started; tests go on where the last one ended."""
    browser.look(1400, 900, "light")
    browser.open(address)
    browser.click("#start-int8")
    wait_for(browser, "$('start-int8').hidden", "!$('start-fp32').hidden")
    browser.click("#start-fp32")
    browser.wait("document.querySelector('#start-fp32').hidden")
    return browser


@pytest.fixture
def page(started: Browser, address: str) -> Iterator[Browser]:
    """Return it, and see at the end that nothing went wrong and nothing else was asked for."""
    yield started
    assert started.errors == []
    assert [
        url for url in started.requests if not url.startswith((address, "data:", "blob:"))
    ] == []


def text(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def texts(browser: Browser, selector: str) -> list[str]:
    script = f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)"
    return list(browser.run(script))


def put(browser: Browser, selector: str, value: object, event: str = "change") -> None:
    """Give a field a value, as a reader would."""
    browser.run(
        f"{{ const field = document.querySelector({json.dumps(selector)});"
        f"field.value = {json.dumps(value)};"
        f"field.dispatchEvent(new Event('{event}', {{bubbles: true}})); }}"
    )


def see(browser: Browser, view: str) -> None:
    browser.click(f"nav a[href='#{view}']")
    browser.wait(f"!document.querySelector('#{view}').hidden")


def wait_for(browser: Browser, *conditions: str) -> None:
    """Wait until something is true; `$` finds an element, as in the page's own modules."""
    browser.wait(f"(($) => {' && '.join(conditions)})(id => document.getElementById(id))")


def number(shown: str) -> float:
    return float(shown.replace(",", "").replace("−", "-"))


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """Return the definitions' steps for the cat, by precision and name."""
    models = {p: minires.resnet50("CIFAR10", p, backend="numpy") for p in ("int8", "fp32")}
    x = models["int8"].preprocess(str(IMAGE))
    return {p: {step.name: step for step in model.steps(x)} for p, model in models.items()}


# The photograph's way.


def test_the_buttons_say_how_large_the_weights_are(
    page: Browser, files: Mapping[str, bytes]
) -> None:
    for precision in ("int8", "fp32"):
        size = len(files[f"weights/{precision}.safetensors"])
        assert text(page, f"#start-{precision} small") == f"{round(size / 1e6)} MB"


def assert_shares(shown: list[str], steps: Mapping[str, Any]) -> None:
    """See that the classes' shares, FP32's and INT8's in turns, are the definitions' softmax."""
    for i, precision in enumerate(("fp32", "int8")):
        logits = steps[precision]["fc"].output[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        assert [float(s.rstrip("%")) for s in shown[i::2]] == pytest.approx(100 * shares, abs=0.06)


def test_the_label_is_shown_for_both_precisions(page: Browser, steps: Mapping[str, Any]) -> None:
    see(page, "photograph")
    assert_shares(texts(page, "#labels .figures div"), steps)
    assert text(page, "#labels b") == "cat"


def test_the_map_has_every_layer(page: Browser, steps: Mapping[str, Any]) -> None:
    see(page, "photograph")
    names = page.run("[...document.querySelectorAll('.chip')].map(chip => chip.dataset.layer)")
    assert names == list(steps["int8"])
    assert texts(page, ".stage strong") == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


def test_a_click_on_a_layer_shows_its_channels(page: Browser, steps: Mapping[str, Any]) -> None:
    see(page, "photograph")
    page.click(".chip[data-layer='layer2.0.conv2']")
    assert text(page, "#sheet-title").startswith("layer2.0.conv2: 128 channels of 8 × 8, ")
    real, q = steps["fp32"]["layer2.0.conv2"].output, steps["int8"]["layer2.0.conv2"].output
    scale, zero_point = minires.resnet50("CIFAR10", "int8", "numpy")["layer2.0.conv2"].qparams
    error = np.sqrt(np.sum(((q - float(zero_point)) * scale - real) ** 2) / np.sum(real**2))
    assert f", {100 * error:.1f}% away" in text(page, "#sheet-title")


def test_a_channel_is_chosen_by_mouse_and_by_keyboard(page: Browser) -> None:
    see(page, "photograph")
    page.click(".chip[data-layer='layer1.0.conv1']")
    page.click("#sheet", 0.5 / 16, 0.5 / 4)
    assert text(page, "#sheet-note").startswith("Channel 0 ")
    page.run("document.querySelector('#sheet').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.press(key)
    assert text(page, "#sheet-note").startswith("Channel 17 ")
    page.click("#sheet-note a")
    page.wait("!document.querySelector('#pixel').hidden")
    assert page.run("document.querySelector('#channel').value") == "17"


# One pixel.

PIXELS = [
    ("conv1", 3, 0, 9), ("layer1.0.conv1", 0, 8, 8), ("layer1.0.conv2", 5, 0, 0),
    ("layer1.0.downsample.0", 200, 15, 3), ("layer1.0.conv3", 30, 5, 6),
    ("layer2.0.conv2", 100, 7, 7), ("layer3.4.conv3", 1000, 2, 1), ("layer4.0.conv2", 511, 1, 0),
    ("layer4.2.conv3", 2047, 0, 1), ("fc", 3, 0, 0),
]  # fmt: skip


def choose(page: Browser, name: str, channel: int, y: int, x: int) -> None:
    for field, value in [("layer", name), ("channel", channel), ("row", y), ("column", x)]:
        put(page, f"#{field}", value)


@pytest.mark.parametrize(("name", "channel", "y", "x"), PIXELS)
def test_a_pixel_is_what_the_definition_says(
    page: Browser, steps: Mapping[str, Any], name: str, channel: int, y: int, x: int
) -> None:
    see(page, "pixel")
    choose(page, name, channel, y, x)
    links = dict(
        zip(texts(page, "#chain li small:first-child"), texts(page, "#chain b"), strict=True)
    )
    output = steps["int8"][name].output
    if name == "fc":
        assert number(links["stands for"]) == pytest.approx(output[0, channel], abs=1e-4)
        return
    wanted = output[0, y, x, channel]
    assert number(next(v for k, v in links.items() if k.startswith("+ zero point"))) == wanted
    assert ("+ residual" in links) == (len(steps["int8"][name].inputs) == 2)
    assert text(page, "#difference").startswith(f"INT8 has {wanted}, ")
    real = steps["fp32"][name].output[0, y, x, channel]
    shown = text(page, "#difference").partition("FP32 has ")[2].partition(":")[0]
    assert number(shown) == pytest.approx(real, abs=2e-4)


def test_the_bytes_are_those_that_meet(page: Browser, steps: Mapping[str, Any]) -> None:
    """Row by row, back from the end by one product a click."""
    see(page, "pixel")
    choose(page, "layer1.0.conv1", 5, 8, 8)
    x = steps["int8"]["layer1.0.conv1"].inputs[0][0, 8, 8].astype(int)
    model = minires.resnet50("CIFAR10", "int8", "numpy")
    w = model.params["layer1.0.conv1"].w_s8[5].astype(int)
    sums = np.cumsum(x * w)
    for k in (63, 62, 61):
        row = [number(cell) for cell in texts(page, "#rows .now td")]
        assert row == [k, x[k], w[k], x[k] * w[k], sums[k]]
        page.click("#back")
    assert text(page, "#step-note") == "61 of 64"
    assert set(texts(page, "#chain .waiting b")) == {"…"}
    page.click("#forward")
    page.click("#all")
    assert text(page, "#step-note") == "64 of 64"


def test_padding_shows_its_zero_point(page: Browser) -> None:
    see(page, "pixel")
    choose(page, "conv1", 3, 0, 9)
    assert len(page.run("[...document.querySelectorAll('#taps .outside')].map(e => 1)")) == 3 * 7
    zero_point = minires.resnet50("CIFAR10", "int8", "numpy")["input"].qparams.zero_point
    assert f"there x is the zero point, {zero_point}." in text(page, "#taps-note")
    put(page, "#step", 0, "input")
    page.click("#tap-on")
    assert text(page, "#step-note") == "3 of 147"
    assert texts(page, "#rows .now td")[1] == f"{zero_point} (padding)"
    page.click("#taps button:nth-child(49)")
    assert text(page, "#step-note") == "147 of 147"


def test_a_pixel_is_chosen_by_mouse_and_by_keyboard(page: Browser) -> None:
    see(page, "pixel")
    choose(page, "layer1.0.conv1", 0, 0, 0)
    page.click("#plane", 4.5 / 16, 10.5 / 16)
    values = "['row', 'column'].map(id => document.querySelector(`#${id}`).value)"
    assert page.run(values) == ["10", "4"]
    page.run("document.querySelector('#plane').focus()")
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.press(key)
    assert page.run(values) == ["9", "5"]
    page.run("document.querySelector('#step').focus()")
    page.press("Home")
    page.press("ArrowRight")
    assert text(page, "#step-note") == "1 of 64"


def test_a_receptive_field_is_what_an_input_can_change(page: Browser) -> None:
    """Seen from the other side: which pixels of a photograph change a pixel of layer1.0.conv2?"""
    see(page, "pixel")
    choose(page, "layer1.0.conv2", 0, 8, 8)
    assert text(page, "#field-note") == "It sees 19 rows and 19 columns of the photograph."
    layers = [
        ("conv1", 7, 2),
        ("maxpool", 3, 2),
        ("layer1.0.conv1", 1, 1),
        ("layer1.0.conv2", 3, 1),
    ]
    reached = np.zeros(64, bool)
    for place in range(64):
        sees = np.arange(64) == place
        for _, kernel, stride in layers:
            padded = np.pad(sees, kernel // 2)
            count = (len(sees) - 1) // stride + 1
            sees = np.array([padded[i * stride : i * stride + kernel].any() for i in range(count)])
        reached[place] = sees[8]
    frame = page.run(
        "(s => [s.top, s.height].map(parseFloat))(document.querySelector('#field + i').style)"
    )
    assert frame == pytest.approx([100 * reached.argmax() / 64, 100 * reached.sum() / 64])


@pytest.mark.parametrize("name", ["input", "maxpool", "avgpool"])
def test_a_layer_without_weights_says_what_it_does(page: Browser, name: str) -> None:
    see(page, "pixel")
    choose(page, name, 1, 0, 0)
    assert page.run("document.querySelector('#products').hidden")
    assert len(text(page, "#chain")) > 60
    assert text(page, "#difference").startswith("INT8 has ")


# One instruction.


def use(page: Browser, name: str, steps: int) -> None:
    see(page, "instruction")
    buttons = texts(page, "#instructions button")
    page.click(f"#instructions button:nth-child({1 + buttons.index(name)})")
    for _ in range(steps):
        page.click("#instruction-step")


def first_lane(page: Browser) -> list[list[float]]:
    cells = "row => [...row.children].map(cell => cell.textContent)"
    rows = page.run(f"[...document.querySelector('.lane').children].map({cells})")
    return [[number(cell) for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("name", "steps", "wrong"),
    [("FMA", 1, False), ("before VNNI", 3, True), ("vpdpbusd", 1, False), ("sdot", 3, False),
     ("in this browser", 3, False)],
)  # fmt: skip
def test_an_instruction_makes_its_sum(page: Browser, name: str, steps: int, wrong: bool) -> None:
    use(page, name, 0)
    page.click("#saturate")
    for _ in range(steps):
        page.click("#instruction-step")
    right = 255 * 127 * (1 if name == "FMA" else 2)
    assert first_lane(page)[-1] == [32767 if wrong else right]
    assert ("the answer is wrong" in text(page, "#instruction-says")) == wrong
    page.click("#random")


def test_a_lane_takes_the_readers_bytes(page: Browser) -> None:
    use(page, "vpdpbusd", 0)
    page.click(".lane:nth-child(1)")
    for i, (x, w) in enumerate([(1, 2), (3, -4), (300, 5), (7, -200)]):
        put(page, f"#bytes :nth-child(1) > input:nth-of-type({1 + i})", x)
        put(page, f"#bytes :nth-child(2) > input:nth-of-type({1 + i})", w)
    page.click("#instruction-step")
    a, b, _, total = first_lane(page)
    assert (a, b) == ([1, 3, 255, 7], [2, -4, 5, -128]), "and a byte stays a byte"
    assert total == [np.dot(a, b)]
    page.click("#instruction-step")
    assert first_lane(page)[-1] == [2 * np.dot(a, b)], "once more onto the sum"
    page.click("#instruction-again")
    assert first_lane(page)[2] == [0]
    page.run("document.querySelector('.lane:nth-child(3)').focus()")
    page.press("Enter")
    assert page.run("document.activeElement.ariaLabel").startswith("Lane 2:"), "the focus stays"


# One range.


def test_a_range_and_its_bits_change_the_label(page: Browser) -> None:
    see(page, "range")
    page.click("#range-reset")
    page.wait("document.querySelector('#range-labels p').textContent === 'It is still “cat”.'")
    eight = texts(page, "#range-numbers dd")
    put(page, "#bits", 3, "input")
    page.click("#everywhere")
    page.wait("document.querySelector('#range-labels p').textContent.startsWith('It was “cat”.')")
    three = texts(page, "#range-numbers dd")
    assert (eight[-1], three[-1]) == ("256", "8")
    assert number(three[0]) / number(eight[0]) == pytest.approx(255 / 7, rel=1e-2)
    page.click("#range-reset")
    page.wait("document.querySelector('#range-labels p').textContent === 'It is still “cat”.'")
    assert texts(page, "#range-numbers dd") == eight


def test_an_edge_is_dragged(page: Browser, steps: Mapping[str, Any]) -> None:
    see(page, "range")
    page.click("#range-reset")
    box = page.run(
        "(box => [box.left, box.top, box.width, box.height])"
        "(document.querySelector('#histogram').getBoundingClientRect())"
    )
    y = box[1] + box[3] / 2
    for kind, share in [
        ("moved", 0.98),
        ("pressed", 0.98),
        ("moved", 0.6),
        ("moved", 0.25),
        ("released", 0.25),
    ]:
        page.mouse(kind, box[0] + share * box[2], y)
    values = steps["fp32"]["layer2.1.conv2"].output
    edge = float(page.run("document.querySelector('#high').value"))
    step = edge / 255
    outside = np.mean(values > edge + step / 2)
    assert 0.001 < outside < 0.5
    assert number(texts(page, "#range-numbers dd")[1].rstrip("%")) == pytest.approx(
        100 * outside, abs=0.02
    )


def test_a_layer_with_negative_values_has_two_edges(page: Browser) -> None:
    see(page, "range")
    put(page, "#range-layer", "layer1.0.downsample.0")
    assert not page.run("document.querySelector('#low').disabled")
    page.run("document.querySelector('#low').focus()")
    page.press("End")
    assert float(page.run("document.querySelector('#low').value")) == pytest.approx(0, abs=1e-3)


# One machine.


def test_both_precisions_are_timed(page: Browser, steps: Mapping[str, Any]) -> None:
    see(page, "machine")
    page.click("#measure")
    wait_for(page, "!$('measure').disabled", "!$('measured').hidden")
    assert texts(page, "#times .bars > span:nth-child(3n+1)") == list(steps["int8"])
    assert 4 <= len(texts(page, "#ladder .pair")) <= 5
    assert "times as fast here" in text(page, "#waterfall-note")
    bars = [number(v.removesuffix(" ms")) for v in texts(page, "#times .figures .int8")]
    total = text(page, "#waterfall-note").partition("in FP32, ")[2].partition(" ms")[0]
    assert sum(bars) == pytest.approx(number(total), abs=0.5)


# Other pictures, and what is no picture.

DROP = """
  const data = new DataTransfer();
  data.items.add(new File([await make()], 'picture'));
  document.querySelector('#drop').dispatchEvent(
    new DragEvent('drop', {dataTransfer: data, cancelable: true}));
"""


BLUE = """(() => {
    const canvas = new OffscreenCanvas(300, 200), context = canvas.getContext('2d');
    context.fillStyle = 'rgb(0, 0, 255)';
    context.fillRect(0, 0, 300, 200);
    return canvas.convertToBlob(); })()"""
HUGE = """(() => {
    const canvas = new OffscreenCanvas(11000, 9000);
    canvas.getContext('2d');
    return canvas.convertToBlob(); })()"""


def drop(page: Browser, make: str) -> None:
    page.run(f"(async () => {{ const make = async () => {make}; {DROP} }})()")


def test_a_picture_is_dropped(page: Browser) -> None:
    see(page, "photograph")
    drop(page, BLUE)
    pixel = "[...document.querySelector('#picture').getContext('2d').getImageData(9, 9, 1, 1).data]"
    page.wait(f"{pixel}[2] === 255 && {pixel}[0] === 0")
    assert "another decoder may differ" in text(page, "#picture-note")
    page.click("#cat")
    page.wait("document.querySelector('#labels b').textContent === 'cat'")
    assert page.run("document.querySelector('#trouble').hidden")


@pytest.mark.parametrize(
    ("make", "says"),
    [("'this is text'", "is no image"),
     (HUGE, "11000 x 9000")],
    ids=["text", "99 megapixels"],
)  # fmt: skip
def test_what_is_no_picture_is_one_sentence(page: Browser, make: str, says: str) -> None:
    see(page, "photograph")
    drop(page, make)
    page.wait("!document.querySelector('#trouble').hidden")
    assert says in text(page, "#trouble")
    assert text(page, "#labels b") == "cat", "and what was there is there"
    page.click("#cat")
    page.wait("document.querySelector('#trouble').hidden")


# What can go wrong before there is a network. These open pages of their own, so they come last.


@pytest.fixture
def fresh(browser: Browser, address: str) -> Iterator[Callable[..., Browser]]:
    """Return a function that opens the page after a script; at the end scripts are forgotten."""
    identifiers = []

    def open_page(script: str = "", query: str = "") -> Browser:
        answer = browser.send("Page.addScriptToEvaluateOnNewDocument", source=script)
        identifiers.append(answer["identifier"])
        browser.open(address + query)
        return browser

    yield open_page
    for identifier in identifiers:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=identifier)


BROKEN = """
  globalThis.broken = true;
  const real = fetch;
  globalThis.fetch = (url, ...rest) =>
    String(url).endsWith('int8.safetensors') && globalThis.broken ? ANSWER : real(url, ...rest);
"""
INTERRUPTED = """new Response(new ReadableStream({start(stream) {
    stream.enqueue(new Uint8Array(9));
    stream.error('gone'); }}))"""


@pytest.mark.parametrize(
    ("answer", "says"),
    [(INTERRUPTED, "broke off"),
     ("new Response('not weights')", "no whole safetensors file"),
     ("new Response('', {status: 404})", "is not there")],
    ids=["interrupted", "wrong", "missing"],
)  # fmt: skip
def test_weights_that_do_not_come_can_be_fetched_again(
    fresh: Callable[..., Browser], answer: str, says: str
) -> None:
    page = fresh(BROKEN.replace("ANSWER", answer))
    page.click("#start-int8")
    wait_for(page, "!$('trouble').hidden", "!$('start-int8').disabled")
    assert says in text(page, "#trouble")
    page.click("nav a[href='#instruction']")
    page.click("#instruction-step")
    assert "vpdpbusd" in text(page, "#instruction-says"), "the rest works"
    page.run("globalThis.broken = false")
    page.click("nav a[href='#photograph']")
    page.click("#start-int8")
    page.wait("!!document.querySelector('#labels b')")
    assert page.run("document.querySelector('#trouble').hidden")
    assert page.errors == []


def test_a_browser_without_simd_is_told_so(fresh: Callable[..., Browser]) -> None:
    page = fresh("WebAssembly.validate = () => false")
    page.click("#start-int8")
    page.wait("!document.querySelector('#trouble').hidden")
    assert "no WebAssembly with SIMD" in text(page, "#trouble")


def test_without_webassembly_a_sentence_and_a_picture_stay(fresh: Callable[..., Browser]) -> None:
    page = fresh("delete globalThis.WebAssembly")
    assert "needs JavaScript and WebAssembly" in text(page, "#fallback")
    assert page.run("document.querySelector('#page').hidden")
    page.wait("document.querySelector('#fallback img').naturalWidth === 1000")


def test_a_view_stands_alone_in_a_chapter(fresh: Callable[..., Browser]) -> None:
    page = fresh(query="?view=range&embed=1&theme=dark")
    assert page.run(
        "[...document.querySelectorAll('.view')].filter(v => !v.hidden).map(v => v.id)"
    ) == ["range"]
    assert page.run("getComputedStyle(document.querySelector('header')).display") == "none"
    assert page.run("document.documentElement.dataset.theme") == "dark"


def test_firefox_shows_the_same(address: str, steps: Mapping[str, Any], tmp_path: Path) -> None:
    """Each view, with both networks; the shares are the definition's."""
    if FIREFOX is None:
        pytest.skip("there is no Firefox here")
    with Firefox(tmp_path / "profile") as firefox:
        firefox.open(address)
        for precision in ("int8", "fp32"):
            firefox.run(f"document.querySelector('#start-{precision}').click()")
            firefox.wait(f"document.querySelector('#start-{precision}').hidden")
        firefox.wait("document.querySelectorAll('#labels .figures div').length === 20")
        script = "[...document.querySelectorAll('#labels .figures div')].map(e => e.textContent)"
        assert_shares(firefox.run(script), steps)
        for view in ("pixel", "instruction", "range", "machine"):
            firefox.run(f"document.querySelector(\"nav a[href='#{view}']\").click()")
            firefox.wait(f"!document.querySelector('#{view}').hidden")
        firefox.run("document.querySelector('#measure').click()")
        firefox.wait("document.querySelector('#waterfall-note').textContent.includes('times')")
        assert firefox.errors == []


NAMELESS = """[...document.querySelectorAll('button, input, select, canvas, svg')]
  .filter(e => !(e.ariaLabel || e.textContent.trim() || e.closest('label') || e.ariaHidden))
  .map(e => e.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(
    fresh: Callable[..., Browser], browser: Browser, scheme: str
) -> None:
    browser.look(420, 800, scheme)
    page = fresh()
    assert page.run("document.documentElement.dataset.theme") == scheme
    page.click("#start-int8")
    page.wait("!!document.querySelector('#labels b')")
    for view in ("photograph", "pixel", "instruction", "range", "machine"):
        see(page, view)
        assert page.run("document.documentElement.scrollWidth") <= 420
    nameless = page.run(NAMELESS)
    assert nameless == [], "a screen reader has a name for each"
    browser.look(1400, 900, "light")
