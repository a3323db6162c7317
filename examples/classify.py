"""Name what photographs show: the five likeliest labels of each.

python examples/classify.py examples/images/cat.jpg
"""

import argparse
import sys

import minires

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("images", nargs="+", metavar="IMAGE")
parser.add_argument(
    "--weights", metavar="NAME|PATH", help="ImageNet's, or minires's own, unless given"
)
parser.add_argument("--precision", default="fp32", help="fp32, bf16, int8 or int8-simulated")
arguments = parser.parse_args()

try:
    model = minires.resnet50(arguments.weights, arguments.precision)
except minires.MiniresError as error:
    sys.exit(f"classify.py: {error}")

status = 0
for image in arguments.images:
    try:
        predictions = minires.classify(image, top=5, model=model)
    except minires.MiniresError as error:
        print(f"classify.py: {error}", file=sys.stderr)
        status = 1
        continue
    print(image)
    for label, probability, _ in predictions:
        print(f"  {probability:7.2%}  {label}")
sys.exit(status)
