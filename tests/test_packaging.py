"""What an installed minires must have beside its code; .ci/run builds the wheel and the sdist."""

import tomllib
from importlib import resources
from pathlib import Path

import minires
from minires import cli, download

ROOT = Path(__file__).parents[1]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
TRAINING = {"train_cifar10.py", "train_log.jsonl", "train_curve.png"}  # in the sdist alone


def test_the_command_is_the_module() -> None:
    assert PROJECT["scripts"] == {"minires": f"{cli.main.__module__}:{cli.main.__name__}"}


def test_the_version_is_told_in_two_places_alike() -> None:
    assert minires.__version__ == PROJECT["version"]


def test_type_checkers_see_the_hints() -> None:
    assert (resources.files("minires") / "py.typed").is_file()


def test_weights_are_found_wherever_minires_is_installed() -> None:
    assert (download.weights_dir() / "manifest.toml").is_file()


def test_the_wheel_has_all_of_the_weights_but_what_training_needs() -> None:
    included = CONFIGURATION["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert (
        included.pop("examples/images/cat.jpg") == "minires/lab/cat.jpg"
    )  # the lab begins with it
    assert all(f"minires/{source}" == target for source, target in included.items())
    here = {f"weights/{path.name}" for path in (ROOT / "weights").iterdir()
            if path.name not in TRAINING | {"__pycache__"}}  # fmt: skip
    assert set(included) == here


def test_the_changelog_starts_with_what_is_next() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
                if line.startswith("## ")]  # fmt: skip
    assert headings[0] in ("## [Unreleased]", f"## [{PROJECT['version']}]")
