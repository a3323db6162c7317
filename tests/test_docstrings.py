"""Every example in the reference is run, as a reader would at a prompt in a checkout."""

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minires
from minires.kernels import cpu
from minires.measure import machine
from minires.measure.peak import Bandwidth
from minires.model import ResNet50

ROOT = Path(__file__).parents[1]
PUBLIC = re.findall(r"^   (minires\.[\w.]+)$", (ROOT / "docs" / "api.rst").read_text("utf-8"), re.M)
MEMORY = [Bandwidth("L2", 2**20, 100, 200, 2), Bandwidth("memory", 2**26, 15, 21, 2)]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What an example may use without making it."""
    model = minires.resnet50("CIFAR10")
    x = model.preprocess(ROOT / "examples" / "images" / "cat.jpg")
    return {"minires": minires, "np": np, "ResNet50": ResNet50, "model": model, "x": x}


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_the_reference_is_found() -> None:
    assert len(PUBLIC) >= 30
    assert {f"minires.{name}" for name in minires.__all__} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_print_what_they_say(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MINIRES_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    machine._keep("int8", machine.Roofs(1920, MEMORY))  # as if they were measured before
    monkeypatch.setattr(cpu, "_chosen", cpu._chosen)
    text = found(name).__doc__
    example = doctest.DocTestParser().get_doctest(
        text, {**names, "folder": tmp_path}, name, None, None
    )
    assert example.examples, "it has no example"
    told: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append)
    assert "".join(told) == ""
