"""The script that trained the bundled network: its own convolution is torch's."""

import runpy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).parents[1] / "weights" / "train_cifar10.py"
CASES = [  # kernel, stride, pixels a side: those of layer3 and layer4, and odd ones
    (1, 1, 4), (3, 1, 4), (3, 1, 2), (3, 2, 8), (1, 2, 8), (1, 2, 7), (3, 2, 7)
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "stride", "pixels"), CASES)
def test_results_and_gradients_are_those_of_torch(kernel: int, stride: int, pixels: int) -> None:
    product = runpy.run_path(str(SCRIPT))["Product"]
    torch.manual_seed(0)
    x, w = torch.randn(3, 24, pixels, pixels), torch.randn(40, 24, kernel, kernel)
    operands = [t.to(memory_format=torch.channels_last).requires_grad_() for t in (x, w)]
    wanted = torch.nn.functional.conv2d(*operands, None, stride, kernel // 2)
    y = product.apply(*operands, stride)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-4)
    grad = torch.randn_like(wanted)
    for got, want in zip(
        torch.autograd.grad(y, operands, grad),
        torch.autograd.grad(wanted, operands, grad),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_in_bfloat16_gradients_are_torchs_but_for_rounding() -> None:
    """As autocast has it: weights are kept in float32 and so are their gradients."""
    convolution = runpy.run_path(str(SCRIPT))["Convolution"]
    for kernel, stride, pixels in CASES:
        torch.manual_seed(0)
        ours = convolution(24, 40, kernel, stride, kernel // 2, bias=False)
        theirs = torch.nn.Conv2d(24, 40, kernel, stride, kernel // 2, bias=False)
        theirs.load_state_dict(ours.state_dict())
        found = []
        for layer in (ours.train(), theirs):
            torch.manual_seed(1)
            x = torch.randn(3, 24, pixels, pixels, requires_grad=True)
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
            y.backward(torch.randn(y.shape, dtype=y.dtype))
            found.append((y, x.grad, layer.weight.grad))
        assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=0.02, atol=0.03 * want.abs().max().item())


@pytest.mark.parametrize("hole", [0, 7, 8])
def test_a_hole_is_painted_and_the_rest_is_kept(hole: int) -> None:
    script = runpy.run_path(str(SCRIPT))
    images = np.random.default_rng(0).integers(1, 90, (200, 40, 40, 3), dtype=np.uint8)
    no_flip, every = np.zeros(200, bool), np.arange(200)
    whole = images[:, 4:36, 4:36]
    cut = script["augment"](images, every, no_flip, 0, hole, np.random.default_rng(1))
    painted = (cut != whole).any(axis=-1)
    counts = painted.sum(axis=(1, 2))
    assert counts.max(initial=0) == hole * hole
    assert (cut[painted] == np.rint(255 * np.array(script["MEAN"]))).all()
    for hidden in painted[counts > 0]:  # one rectangle
        assert hidden.sum() == hidden.any(axis=0).sum() * hidden.any(axis=1).sum()
