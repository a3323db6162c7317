import json
import threading
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from minires import reading
from minires.errors import ImageError, MiniresError
from minires.evaluate import (
    Comparison,
    accuracy,
    choose_networks,
    compare,
    evaluate_networks,
    format_evaluation,
    label_folders,
    logits_of,
    read_labels,
    wilson,
)
from minires.model import ResNet50
from minires.preprocess import Preset, preprocess
from tests.comparing import Array, assert_close
from tests.making_files import save_photograph
from tests.seeded_weights import seeded_state_dict

SMALL = Preset(32, 32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WIDER = Preset(48, 48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

# Labels


def test_labels_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    """With any columns beside, names with a comma, a folder or an accent, and empty lines."""
    path = tmp_path / "labels.csv"
    path.write_text(
        'label,author,file\n7,A,b.jpg\n0,,"a, or so.jpg"\n\n999,B,sub/é.png\n', encoding="utf-8"
    )
    assert read_labels(path) == [("b.jpg", 7), ("a, or so.jpg", 0), ("sub/é.png", 999)]
    assert read_labels(str(path)) == read_labels(path)


def test_labels_may_have_the_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(b"file,label\r\na.jpg,3\r\nb.jpg,4\r\n")
    assert read_labels(path) == [("a.jpg", 3), ("b.jpg", 4)]


def test_a_header_alone_means_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\n")
    assert read_labels(path) == []


def test_labels_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MiniresError, match=r"none\.csv: cannot be read \(No such file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(MiniresError, match=r"cannot be read \(Is a directory"):
        read_labels(tmp_path)


BAD_LABELS = {
    "no column file": b"name,label\na.jpg,3\n",
    "no column label": b"file,class\na.jpg,3\n",
    "no header": b"a.jpg,3\nb.jpg,4\n",
    "semicolons": b"file;label\na.jpg;3\n",
    "a word": b"file,label\na.jpg,3\nb.jpg,tabby\n",
    "a fraction": b"file,label\na.jpg,3.0\n",
    "an empty label": b"file,label\na.jpg,\n",
    "a short line": b"file,label\na.jpg,3\nb.jpg\n",
    "not UTF-8": b"file,label\n\xff.jpg,3\n",
    "nothing": b"",
    "no column and no row": b"name,label\n",
    "no file name": b"label,file\n3\n",
    "a field too long for csv": b"file,label\n" + b"a" * 200_000 + b",3\n",
}


@pytest.mark.parametrize("content", BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_of_another_kind_are_an_error_that_says_what_is_wanted(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(MiniresError, match=r"labels\.csv: wanted .* columns file and label"):
        read_labels(path)


def test_labels_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Excel's "CSV UTF-8" does."""
    path = tmp_path / "labels.csv"
    path.write_bytes(b"\xef\xbb\xbffile,label\r\na.jpg,3\r\n")
    assert read_labels(path) == [("a.jpg", 3)]


# Folders of classes


def folders(tmp_path: Path, *names: str) -> Path:
    """Make folders, each with a photograph unless its name ends in empty."""
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        if not name.endswith("empty"):
            (tmp_path / name / "a.jpg").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").write_text("no folder")
    return tmp_path


CLASSES = ["tabby", "tiger cat", "crane", "crane"]


def labelled(folder: Path, categories: list[str]) -> tuple[list[tuple[str, int]], list[str]]:
    told: list[str] = []
    return label_folders(folder, categories, told.append), told


def test_folders_called_as_classes_are_these(tmp_path: Path) -> None:
    rows, told = labelled(folders(tmp_path, "Tiger_cat", "tabby/indoors"), CLASSES)
    assert [(Path(name).as_posix(), i) for name, i in rows] == [
        ("Tiger_cat/a.jpg", 1),
        ("tabby/indoors/a.jpg", 0),
    ]
    assert told == []


def test_as_many_folders_as_classes_count_by_name(tmp_path: Path) -> None:
    """One of them is empty, and counts: torchvision's ImageFolder would refuse it."""
    folder = folders(tmp_path, "n02", "n01", "n03 empty", "n04")
    rows, told = labelled(folder, CLASSES)
    assert [i for _, i in rows] == [0, 1, 3]
    assert told[0].endswith("ImageFolder: n01 is tabby, n04 is crane")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["tabby", "lion"],
            r"2 folders \(lion, tabby\).*4 classes \(tabby, tiger",
        ),
        (["crane"], "neither names"),  # there are two of that name
        ([], "has no folders of classes"),
        (["8", "9", "10", "11"], "in that order, by name and not by number; write 02 for 2"),
    ],
)
def test_folders_that_tell_no_class_are_refused(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    with pytest.raises(MiniresError, match=reason):
        labelled(folders(tmp_path, *names), CLASSES)


def test_numbers_that_sort_as_names_are_classes(tmp_path: Path) -> None:
    rows, _ = labelled(folders(tmp_path, "0", "1", "2", "3"), CLASSES)
    assert [i for _, i in rows] == [0, 1, 2, 3]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MiniresError, match=r"none: cannot be read \(No such"):
        labelled(tmp_path / "none", CLASSES)


# Accuracy


def test_accuracy_counts_the_first_and_the_first_five() -> None:
    ranks = [0, 0, 4, 5, 9, 1, 0, 6]  # where the right label comes among ten
    logits = np.tile(-np.arange(10, dtype=np.float32), (8, 1))
    assert accuracy(logits, np.array(ranks)) == (8, 3 / 8, 5 / 8)


def test_of_equal_logits_the_lower_index_comes_first() -> None:
    equal = np.zeros((7, 7), np.float32)
    assert accuracy(equal, np.arange(7)) == (7, 1 / 7, 5 / 7)
    assert accuracy(equal[:1], np.array([4])) == (1, 0, 1)
    assert accuracy(equal[:1], np.array([5])) == (1, 0, 0)
    signed = np.array([[0.0, -0.0, 0.0]], np.float32)  # equal, whatever their signs
    assert [accuracy(signed, np.array([label])).top1 for label in range(3)] == [1, 0, 0]


def test_accuracy_is_that_of_a_plain_sort() -> None:
    """On whole numbers, so that most rows have ties at the first and at the fifth place."""
    random = np.random.RandomState(0)
    logits = random.randint(-3, 4, (200, 12)).astype(np.float32)
    labels = random.randint(0, 12, 200)
    orders = [
        [i for _, i in sorted((-value, i) for i, value in enumerate(row))]
        for row in logits.tolist()
    ]
    first = sum(order[0] == label for order, label in zip(orders, labels, strict=True))
    five = sum(label in order[:5] for order, label in zip(orders, labels, strict=True))
    assert accuracy(logits, labels) == (200, first / 200, five / 200)
    assert 0 < first < five < 200


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_with_five_classes_or_fewer_each_is_among_the_first_five(classes: int) -> None:
    logits = np.tile(np.arange(classes, dtype=np.float32), (classes, 1))
    assert accuracy(logits, np.arange(classes)) == (classes, 1 / classes, 1)


# Two networks


def answers(outcomes: Array, labels: Array) -> Array:
    """Make logits over four classes whose first is the label, or that many classes above it."""
    logits = np.zeros((len(labels), 4), np.float32)
    logits[np.arange(len(labels)), (labels + outcomes) % 4] = 1
    return logits


def compared(both: int, wins: int, losses: int, neither: int) -> Comparison:
    """Compare two networks of which, in that order, both, one, the other and none are right."""
    counts = (both, wins, losses, neither)
    labels = np.arange(sum(counts)) % 4
    one = answers(np.repeat([0, 0, 1, 1], counts), labels)
    return compare(one, answers(np.repeat([0, 1, 0, 2], counts), labels), labels)


COUNTS = [(70, 10, 5, 15), (794, 150, 86, 570), (0, 0, 0, 9), (40, 0, 3, 0), (3, 20, 0, 1)]


@pytest.mark.parametrize("counts", COUNTS)
def test_the_interval_is_the_normal_one_of_a_table_with_half_a_count_more(
    counts: tuple[int, int, int, int],
) -> None:
    """By the mean and the variance of single differences, not by Agresti and Min's formula."""
    differences, weights = np.array([0, 1, -1, 0]), np.array(counts) + 0.5
    mean = np.average(differences, weights=weights)
    variance = np.average((differences - mean) ** 2, weights=weights)
    half = NormalDist().inv_cdf(0.975) * np.sqrt(variance / weights.sum())
    result = compared(*counts)
    # 1.96 stands for 1.959964: 2e-5 of a width that is below 2.
    assert abs(result.low - (mean - half)) < 4e-5
    assert abs(result.high - (mean + half)) < 4e-5
    assert result.difference == (counts[1] - counts[2]) / sum(counts)


def test_the_interval_is_that_of_a_textbook_to_its_digits() -> None:
    """Ratings of the prime minister (Agresti, "Categorical Data Analysis", on matched pairs)."""
    result = compared(794, 150, 86, 570)
    assert result.difference == 0.04
    assert abs(result.low - 0.02) < 0.005
    assert abs(result.high - 0.06) < 0.005


@pytest.mark.parametrize(
    ("images", "shares"),
    [
        (100, (0.70, 0.10, 0.05, 0.15)),
        (500, (0.80, 0.01, 0.02, 0.17)),
        (60, (0.30, 0.30, 0.10, 0.30)),
        # The two hardly ever differ: without the half counts only two in three would hold it.
        (20, (0.90, 0.05, 0.00, 0.05)),
    ],
)
def test_the_interval_holds_the_true_difference_95_times_in_100(
    images: int, shares: tuple[float, ...]
) -> None:
    drawn = np.random.RandomState(0).multinomial(images, shares, 1000)
    tables, often = np.unique(drawn, axis=0, return_counts=True)
    truth = shares[1] - shares[2]
    intervals = [compared(*map(int, table)) for table in tables]
    covered = np.dot([c.low <= truth <= c.high for c in intervals], often) / 1000
    # Its own error is 0.7%. It may be careful where few images differ, never careless.
    assert covered >= 0.93
    if images * min(shares[1:3]) >= 5:
        assert covered <= 0.97


def test_pairing_makes_the_interval_narrow() -> None:
    """Two separate samples of 1000 with these accuracies would leave +-3.7 points."""
    result = compared(760, 8, 4, 228)
    assert result.low < result.difference < result.high
    assert result.high - result.low < 0.2 * 2 * 0.037


def test_the_difference_is_that_of_the_accuracies() -> None:
    """With ties, which both must settle the same way."""
    random = np.random.RandomState(1)
    one, other = random.randint(0, 4, (2, 300, 10)).astype(np.float32)
    labels = random.randint(0, 10, 300)
    result = compare(one, other, labels)
    expected = accuracy(one, labels).top1 - accuracy(other, labels).top1
    assert abs(result.difference - expected) < 1e-12
    assert expected != 0


def test_agreement_counts_the_same_label_whether_right_or_wrong() -> None:
    labels = np.array([0, 1, 2, 3, 0, 1])
    one = answers(np.array([0, 0, 1, 1, 2, 3]), labels)
    other = answers(np.array([0, 1, 1, 2, 2, 0]), labels)
    assert compare(one, other, labels).agreement == 3 / 6  # one right, two wrong


@pytest.mark.parametrize("change", [5.0, -5.0])
def test_the_largest_difference_of_a_logit_has_no_sign(change: float) -> None:
    logits = answers(np.zeros(6, int), np.arange(6) % 4)
    other = logits - np.float32(0.25)
    other[2, 3] = logits[2, 3] + change
    assert compare(logits, other, np.arange(6) % 4).largest_logit_difference == 5


def test_swapping_the_networks_turns_the_difference_round() -> None:
    random = np.random.RandomState(2)
    one, other = random.random_sample((2, 100, 5)).astype(np.float32)
    labels = random.randint(0, 5, 100)
    result, swapped = compare(one, other, labels), compare(other, one, labels)
    assert swapped.difference == -result.difference != 0
    assert (swapped.low, swapped.high) == (-result.high, -result.low)
    assert swapped.agreement == result.agreement
    assert swapped.largest_logit_difference == result.largest_logit_difference


@pytest.mark.parametrize("images", [1, 10, 1000])
def test_identical_networks_differ_by_nothing_but_the_interval_keeps_a_doubt(images: int) -> None:
    """About 2 in N: so much could still be behind no difference in N images."""
    logits = np.random.RandomState(3).random_sample((images, 10)).astype(np.float32)
    result = compare(logits, logits.copy(), np.arange(images) % 10)
    assert (result.agreement, result.difference, result.largest_logit_difference) == (1, 0, 0)
    assert result.low == -result.high
    assert abs(result.high - 1.96 / (images + 2)) < 1e-12


def test_results_can_be_written_as_json() -> None:
    """They are Python's numbers, not NumPy's: the command line prints them."""
    result = compared(3, 2, 1, 1)
    assert json.loads(json.dumps(result._asdict())) == result._asdict()
    scored = accuracy(np.zeros((2, 3), np.float32), np.array([0, 1]))
    assert json.loads(json.dumps(scored._asdict())) == {"images": 2, "top1": 0.5, "top5": 1.0}


# Photographs


@pytest.fixture(scope="module")
def models() -> list[ResNet50]:
    """Two networks; the second one's own preprocessing would give other shapes."""
    return [
        ResNet50.from_state_dict(seeded_state_dict(seed, 10), {"name": name, "preset": preset})
        for seed, name, preset in [(0, "small", SMALL), (1, "wider", WIDER)]
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "sub").mkdir()
    for seed, name in enumerate(["a.png", "b.jpg", "sub/c.png"]):
        save_photograph(folder / name, seed)
    return folder


def test_logits_are_those_of_each_network_on_the_first_ones_preprocessing(
    models: list[ResNet50], folder: Path
) -> None:
    files = ["sub/c.png", "a.png", "b.jpg"]
    found: list[Any] = list(logits_of(models, folder, files))
    assert [[y.shape for y in of_models] for of_models in found] == [[(1, 10)] * 2] * 3
    x = preprocess([folder / name for name in files], SMALL)
    for i, model in enumerate(models):
        expected = model(x)
        # Batches of another size are rounded differently in BLAS.
        bound = 1e-4 * float(np.abs(expected).max())
        assert_close(np.concatenate([of_models[i] for of_models in found]), expected, bound)
        assert np.ptp(expected, axis=0).max() > 100 * bound  # another order would be noticed
    assert np.abs(found[0][0] - found[0][1]).max() > 0.1


def test_photographs_are_read_ahead(
    models: list[ResNet50], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "get_num_threads", lambda: 2)
    of_last = threading.Event()

    def read(file: Path, preset: Preset) -> Array:
        if file.name == "last.png":
            of_last.set()
        return preprocess(folder / "a.png", preset)

    monkeypatch.setattr(reading, "_read", read)
    found = logits_of(models[:1], folder, ["first.png", "last.png"])
    next(found)
    assert of_last.wait(60)  # nobody has asked for it yet
    assert len(list(found)) == 1


def test_a_photograph_that_cannot_be_read_stops_no_other(
    models: list[ResNet50], folder: Path
) -> None:
    error, logits = logits_of(models[:1], str(folder), ["none.png", "a.png"])
    assert isinstance(error, ImageError)
    assert "none.png" in str(error)
    assert isinstance(logits, list)


def test_no_photographs_give_no_logits(models: list[ResNet50], folder: Path) -> None:
    assert list(logits_of(models, folder, [])) == []


# Whole networks


def test_two_networks_are_measured_and_compared(models: list[ResNet50], folder: Path) -> None:
    names = ["a.png", "b.jpg", "sub/c.png"]
    rows = [(name, i) for i, name in enumerate(names)]
    told: list[ImageError] = []
    result = evaluate_networks(models, folder, [*rows, ("gone.png", 0)], told.append)
    assert (result["images"], result["unusable"]) == (len(rows), 1)
    assert "gone.png" in str(told[0])
    assert len(told) == 1
    truth = np.array([label for _, label in rows])
    found: list[Any] = list(logits_of(models, folder, names))
    logits = [np.concatenate(of_model) for of_model in zip(*found, strict=True)]
    for of_model, y in zip(result["models"], logits, strict=True):
        assert of_model["top1"] == accuracy(y, truth).top1
        assert of_model["precision"] == "fp32"
    assert result["comparison"]["agreement"] == compare(*logits, truth).agreement
    assert json.loads(json.dumps(result)) == result
    lines = format_evaluation(result).splitlines()
    assert len(lines) == 6
    assert [line.count("% (") for line in lines] == [0, 2, 2, 1, 0, 0]  # an interval of each share
    alone = evaluate_networks(models[:1], folder, rows, told.append)
    assert "comparison" not in alone
    assert len(format_evaluation(alone).splitlines()) == 2


def test_what_cannot_be_evaluated_is_told(models: list[ResNet50], folder: Path) -> None:
    told: list[ImageError] = []
    with pytest.raises(MiniresError, match="there is no usable image"):
        evaluate_networks(models, folder, [("gone.png", 0)], told.append)
    with pytest.raises(MiniresError, match=r"a\.png has the label 10, but small knows only 0 to 9"):
        evaluate_networks(models, folder, [("a.png", 10)], told.append)


def test_a_network_is_compared_with_fp32_unless_told_otherwise(tmp_path: Path) -> None:
    assert choose_networks("int8", "A") == [("int8", "A"), ("fp32", "A")]
    assert choose_networks("fp32", "A") == [("fp32", "A")]
    assert choose_networks("fp32", "A", None, "B") == [("fp32", "A"), ("fp32", "B")]
    assert choose_networks("int8", "A", "none") == [("int8", "A")]
    assert choose_networks("int8", "A", "bf16", "B") == [("int8", "A"), ("bf16", "B")]


def test_an_interval_of_a_share_is_wilsons() -> None:
    """Of 10 successes in 20 it is 0.299 to 0.701."""
    assert wilson(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0.0, 1)[0] == 0.0
    assert wilson(1.0, 3)[1] == 1.0
