"""The script that trained the bundled network: its own convolution is torch's."""

import runpy
from pathlib import Path

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
