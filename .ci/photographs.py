"""Hold what comes with minires to photographs, in FP32 and in INT8.

    python .ci/photographs.py IMAGENET_SAMPLE

The photographs are those of the sample whose ImageNet class is one of CIFAR-10's, as listed below:
83. Deer are no class of ImageNet. Of the first ten, as they come, eight have to be right, and 60%
of all. Guessing would be right on a tenth; the network, which knows 32x32 pixels of small pictures,
was right on 70% when it was made.
"""

import sys
from collections import Counter
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
names = {number: name for name, numbers in SAME.items() for number in numbers}
chosen = [(names[n], file) for file, n in read_labels(folder / "labels.csv") if n in names]

failed = False
for precision in "fp32", "int8":
    model = minires.resnet50(precision=precision)
    assert model.meta["name"] == "CIFAR10", "this is to run where nothing can be downloaded"
    right: Counter[str] = Counter()
    early = 0
    for i, (name, file) in enumerate(chosen):
        answer = minires.classify(folder / file, top=1, model=model)[0]
        right[name] += answer.label == name
        early += i < 10 and answer.label == name
    counts = Counter(name for name, _ in chosen)
    told = ", ".join(f"{name} {right[name]} of {counts[name]}" for name in counts)
    share = right.total() / len(chosen)
    print(f"{precision}: of the first ten {early} are right, of all {right.total()} of "
          f"{len(chosen)}, {share:.0%}: {told}")  # fmt: skip
    failed = failed or not (share >= 0.6 and early >= 8)
sys.exit(failed)
