"""Hold what comes with minires to ten photographs: eight have to be right, in FP32 and in INT8.

    python .ci/ten_photographs.py IMAGENET_SAMPLE

The photographs are of ImageNet's classes; those that are one of CIFAR-10's are listed below. The
first of each class is taken, by its number, then the second, until there are ten. Deer are no
class of ImageNet, and the sample has no horse: two classes have a second photograph instead.
"""

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import minires
from minires.evaluate import read_labels

SAME: dict[str, Iterable[int]] = {
    "airplane": (404, 895),  # airliner, warplane
    "automobile": (436, 468, 511, 609, 627, 656, 661, 751, 817),  # beach wagon to sports car
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),  # cock to albatross
    "cat": range(281, 286),  # tabby to Egyptian cat
    "dog": range(151, 269),  # Chihuahua to Mexican hairless
    "frog": range(30, 33),  # bullfrog, tree frog, tailed frog
    "horse": (339,),  # sorrel
    "ship": (403, 510, 628, 724, 780),  # aircraft carrier, container ship, liner, pirate, schooner
    "truck": (555, 569, 675, 864, 867),  # fire engine, garbage truck, moving van, two more
}

folder = Path(sys.argv[1])
files = {number: file for file, number in read_labels(folder / "labels.csv")}
by_class = [[(name, files[n]) for n in numbers if n in files] for name, numbers in SAME.items()]
rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_class))
chosen = [photograph for photograph in rounds if photograph][:10]

failed = False
for precision in "fp32", "int8":
    model = minires.resnet50(precision=precision)
    assert model.meta["name"] == "CIFAR10", "this is to run where nothing can be downloaded"
    right = 0
    for name, file in chosen:
        answer = minires.classify(folder / file, top=1, model=model)[0]
        right += answer.label == name
        print(f"{precision:<6}{file}  {name:<12}{answer.probability:7.2%}  {answer.label}")
    print(f"{precision}: {right} of {len(chosen)} are right")
    failed = failed or right < 8
sys.exit(failed)
