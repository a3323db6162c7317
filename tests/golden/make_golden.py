"""Write torchvision_resnet50.npz: what torchvision makes of seeded weights and inputs.

Run it by hand, where torch and torchvision are installed:

    python -m tests.golden.make_golden

test_golden.py then holds minires to the file on machines that have neither. For each case the
file keeps the output of the stem, of every block and the logits, each as a sample of its values
with the sum and the sum of squares of all.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.seeded_weights import Array, seeded_input, seeded_state_dict

GOLDEN = Path(__file__).with_name("torchvision_resnet50.npz")
SAMPLES = 1500  # values kept of each tensor


class Case(NamedTuple):
    """A seed for weights and input, the input's shape, and the number of classes."""

    seed: int
    shape: tuple[int, ...]
    num_classes: int


CASES = {
    "batch 2 of 224x224": Case(0, (2, 3, 224, 224), 1000),
    "one of 97x65": Case(1, (1, 3, 97, 65), 10),
}


def digest(x: Array) -> dict[str, Array]:
    """Reduce a tensor, activations as NHWC, to what the golden file keeps of it."""
    step = x.size // SAMPLES | 1  # odd, as channels are powers of two: it visits all of them
    exact = x.astype(np.float64)
    return {
        "shape": np.array(x.shape),
        "sample": x.reshape(-1)[::step],
        "sums": np.array([exact.sum(), np.square(exact).sum()]),
    }


def torchvision_outputs(case: Case) -> dict[str, Array]:
    """Run torchvision; return the output of the stem, every block and the classifier, NHWC."""
    import torch

    from tests.torch_oracle import load_torchvision

    network = load_torchvision().models.resnet50(num_classes=case.num_classes).eval()
    state = seeded_state_dict(case.seed, case.num_classes)
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    outputs: dict[str, Array] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, y: Any) -> None:
            outputs[name] = (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy().copy()

        return hook

    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    blocks = {f"layer{i}.{j}": block for i, stage in enumerate(stages, 1)
              for j, block in enumerate(stage)}  # fmt: skip
    for name, module in {"relu": network.relu, **blocks, "fc": network.fc}.items():
        module.register_forward_hook(keep(name))
    with torch.inference_mode():
        network(torch.tensor(seeded_input(case.shape, case.seed)))
    return outputs


def main() -> None:
    """Write the golden file."""
    import torch

    from tests.torch_oracle import load_torchvision

    arrays: dict[str, Any] = {"torch": np.array(torch.__version__),
              "torchvision": np.array(load_torchvision().__version__)}  # fmt: skip
    for case_name, case in CASES.items():
        for name, output in torchvision_outputs(case).items():
            for field, value in digest(output).items():
                arrays[f"{case_name}/{name}/{field}"] = value
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
