"""Train the bundled ResNet-50 v1.5 on CIFAR-10, from random weights, on a CPU.

    python weights/train_cifar10.py --data cifar10.tar.xz --out RUN
    python weights/train_cifar10.py --out RUN --export weights/NAME.safetensors

Needs torch and matplotlib beside minires. Everything a run makes is in --out: the
decoded images, a checkpoint after each epoch (the same command again resumes from it), a line an
epoch in log.jsonl, the curve, and at the end the float32 weights and their metadata.
"""

import argparse
import copy
import dataclasses
import io
import json
import math
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import minires
from minires.api import FORMAT
from minires.model import ResNet50 as ForInference
from minires.quantize import calibrate

CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]
CLASSES += ["dog", "frog", "horse", "ship", "truck"]
MEAN = (0.4913, 0.4821, 0.4465)  # of the training pixels / 255, measured, red green blue
STD = (0.2452, 0.2428, 0.2606)
SIZE = 64  # what the network sees at inference: 32x32 enlarged
CALIBRATION_IMAGES = 512


class Product(torch.autograd.Function):
    """A convolution by im2col and a matrix product, where torch's own is slow.

    Of a 3x3 the gradient of the weights alone: the rest is torch's. At 4x4 and 2x2 pixels that
    gradient ran at 130 to 155 GFLOP/s here and at 13 to 75 as torch computes it, in float32 on
    two cores of a Zen 3. All of training is 1.3 times as fast (50 to 54 images/s against 38 to
    42, all blocks, 64x64). In bfloat16 it is 1.5 times as fast (213 to 218 against 145, on two
    cores with AMX): torch spent 650 ms of a step of 1,750 on weights' gradients, which take 250
    as matrix products.
    """

    @staticmethod
    def forward(ctx, x, weight, stride):
        """(N, in_c, H, W) and (out_c, in_c, k, k) to (N, out_c, H / stride, W / stride)."""
        ctx.stride, ctx.shape = stride, x.shape
        if weight.shape[2] > 1:
            ctx.save_for_backward(x, weight)
            return nn.functional.conv2d(x, weight, None, stride, 1)
        x = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        pixels = x.permute(0, 2, 3, 1)
        y = matmul(pixels.flatten(0, 2), weight.flatten(1).T)
        return y.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad):
        """Of x by `weight`, and of the weights by im2col of x."""
        x, weight = ctx.saved_tensors
        (out_c, in_c, k, _), stride = weight.shape, ctx.stride
        grad = grad.contiguous(memory_format=torch.channels_last)
        n, _, h, w = grad.shape
        rows = grad.permute(0, 2, 3, 1).flatten(0, 2)  # (n * h * w, out_c)
        if k == 1:
            columns = x.permute(0, 2, 3, 1).flatten(0, 2)
            grad_x = matmul(rows, weight.flatten(1)).view(n, h, w, in_c).permute(0, 3, 1, 2)
            if stride > 1:
                read, nhwc = grad_x, torch.channels_last
                grad_x = torch.empty(ctx.shape, dtype=read.dtype, memory_format=nhwc).zero_()
                grad_x[:, :, ::stride, ::stride] = read
        else:
            padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            per_n, per_y, per_x, per_c = padded.stride()
            strides = (per_n, per_y * stride, per_x * stride, per_y, per_x, per_c)
            columns = padded.as_strided((n, h, w, k, k, in_c), strides).reshape(n * h * w, -1)
            call = torch.ops.aten.convolution_backward
            sizes = [stride, stride], [1, 1], [1, 1], False, [0, 0], 1
            grad_x = call(grad, x, weight, None, *sizes, [True, False, False])[0]
        grad_weight = matmul(rows.T, columns).view(out_c, k, k, in_c)
        return grad_x, grad_weight.permute(0, 3, 1, 2), None


def matmul(a, b):
    """Multiply two matrices, float32 by NumPy's OpenBLAS: on AMD faster than torch's MKL."""
    if a.dtype != torch.float32:
        return a @ b
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())


class Convolution(nn.Conv2d):
    """torch's, but for the small ones and, in bfloat16, all 1x1, which are ours."""

    def forward(self, x):
        """(N, in_c, H, W) to (N, out_c, H / stride, W / stride)."""
        stride, small = self.stride[0], x.shape[2] // self.stride[0] <= 4
        skips = self.kernel_size[0] < stride  # the 1x1 of a shortcut that halves the image
        weight, reduced = self.weight, torch.is_autocast_enabled("cpu")
        if reduced:
            x, weight, skips = x.bfloat16(), weight.bfloat16(), self.kernel_size[0] == 1
        if self.training and (small or skips):
            return Product.apply(x, weight, stride)
        return super().forward(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2015, figure 5, right).

    The stride is on the 3x3: that is torchvision's v1.5, whose names are used here.
    """

    def __init__(self, in_c, mid_c, stride):
        super().__init__()
        out_c = 4 * mid_c
        self.conv1 = Convolution(in_c, mid_c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_c)
        self.conv2 = Convolution(mid_c, mid_c, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_c)
        self.conv3 = Convolution(mid_c, out_c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_c)
        nn.init.zeros_(self.bn3.weight)  # each block starts as its shortcut (Goyal et al. 2017)
        self.downsample = None
        if stride != 1 or in_c != out_c:
            conv = Convolution(in_c, out_c, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_c))

    def forward(self, x):
        """(N, in_c, H, W) to (N, 4 * mid_c, H / stride, W / stride)."""
        # In place where backward does not need what is overwritten: memory is what limits these.
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return torch.relu_(y)


class ResNet50(nn.Module):
    """torchvision's resnet50, key for key, with ten classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        in_c = 64
        for stage, (mid_c, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            layer = []
            for block in range(blocks):
                layer.append(Bottleneck(in_c, mid_c, 2 if stage > 1 and block == 0 else 1))
                in_c = 4 * mid_c
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.fc = nn.Linear(in_c, len(CLASSES))

    def forward(self, x):
        """(N, 3, H, W), normalized, to (N, 10) logits."""
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


def decode(data, out, split):
    """Read "train" or "test", from the archive the first time and from `out` after that.

    Returns
    -------
    images : (N, 32, 32, 3) uint8
        Sorted by file name.
    labels : (N,) int64
    """
    cached, cached_labels = out / f"{split}.npy", out / f"{split}_labels.npy"
    if not cached.exists():
        if data is None:
            sys.exit(f"train_cifar10: {cached} is not there yet: give --data cifar10.tar.xz")
        pixels = {}
        with tarfile.open(data) as tar:
            for member in tar:
                path = Path(member.name)  # train/CLASS/NNNN.jpg
                if path.suffix == ".jpg" and split in path.parts:
                    with Image.open(io.BytesIO(tar.extractfile(member).read())) as image:
                        pixels[path.parts[-2:]] = np.asarray(image)
        names = sorted(pixels)
        np.save(cached_labels, [CLASSES.index(folder) for folder, _ in names])
        np.save(cached, np.stack([pixels[name] for name in names]))
    return np.load(cached), np.load(cached_labels)


def normalize(images_u8):
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32, whose memory stays in NHWC order."""
    x = torch.from_numpy(images_u8).float()
    x = (x - 255 * torch.tensor(MEAN)) / (255 * torch.tensor(STD))
    return x.permute(0, 3, 1, 2)


def augment(padded_u8, chosen, flip, shift, hole, rng):
    """Cut a 32x32 window out of each chosen 40x40 image, up to `shift` pixels off its centre.

    It is mirrored where `flip` is true. Then a square of `hole` pixels a side, which may reach
    over the edge, is painted in the mean colour (cutout: DeVries and Taylor 2017).
    """
    rows = rng.integers(4 - shift, 5 + shift, (len(chosen), 1)) + np.arange(32)
    columns = rng.integers(4 - shift, 5 + shift, (len(chosen), 1)) + np.arange(32)
    columns[flip] = columns[flip, ::-1]
    cut = padded_u8[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    if hole:
        corners = rng.integers(-(hole // 2), 32 - hole // 2, (2, len(chosen), 1))
        down, across = (np.arange(32) >= corners) & (np.arange(32) < corners + hole)
        cut[down[:, :, None] & across[:, None, :]] = np.rint(255 * np.array(MEAN))
    return cut


@torch.no_grad()
def accuracy(model, images_u8, labels, dtype=torch.float32):
    """Top-1 in percent, on images enlarged as they are at inference: by Pillow, to uint8.

    In training torch enlarges, without rounding. Both filters are bilinear with half-pixel
    centres; they differ by that rounding alone.
    """
    model.eval()
    right = 0
    for start in range(0, len(images_u8), 250):
        part = images_u8[start : start + 250]
        part = [Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for i in part]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            best = model(normalize(np.stack(part))).argmax(1)
        right += int((best.numpy() == labels[start : start + 250]).sum())
    return 100 * right / len(images_u8)


class Muon:
    """Momentum, with each convolution's update made orthogonal (Jordan et al. 2024).

    A convolution's gradient, as an (out_c, k_h * k_w * in_c) matrix, has a few large singular
    values and many small ones. Setting them all to about 1 lets rare directions learn as fast as
    common ones. It won the one trial made: 100 seconds each at batch 128, neither tuned (lr 0.08
    against SGD's 0.1), 35% against 26% of 2,000 test images, although a step takes half as long
    again. At batch 512 it adds about a tenth.

    The norm of each weight is kept, because the BatchNorm behind it divides it out anyway: so
    there is no weight decay here, and `lr` is the size of a step relative to the weight.
    """

    def __init__(self, weights, dtype, momentum=0.9):
        self.weights, self.dtype, self.momentum = list(weights), dtype, momentum
        self.averages = [torch.zeros_like(w) for w in self.weights]

    @torch.no_grad()
    def step(self, lr):
        """Move every weight by its gradient."""
        for w, average in zip(self.weights, self.averages, strict=True):
            average.lerp_(w.grad, 1 - self.momentum)
            update = w.grad.lerp(average, self.momentum)  # Nesterov: looks a step ahead
            update = update.permute(0, 2, 3, 1)  # OHWI, as it lies in memory
            x = update.flatten(1).to(self.dtype)  # (out_c, k_h * k_w * in_c)
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            x = x / (x.norm() + 1e-7)
            # Newton-Schulz: an odd polynomial p(x x^T) x sends singular values to about 1. Three
            # steps of it are one product of polynomials of x x^T, which is small: so x itself, up
            # to nine times as long, is multiplied only twice.
            gram, total = matmul(x, x.T), None
            for step in range(3):
                factor = 2.0315 * matmul(gram, gram) - 4.7750 * gram
                factor.diagonal().add_(3.4445)
                total = factor if total is None else matmul(factor, total)
                if step < 2:
                    gram = matmul(matmul(factor, gram), factor)
            x = matmul(total, x)
            x = x.T if tall else x
            w.sub_(x.float().view(update.shape).permute(0, 3, 1, 2), alpha=lr)
            w.mul_(len(w) ** 0.5 / w.norm())


def train(args, recipe):
    """Run the epochs that the checkpoint in --out has not seen, then write the weights."""
    images, labels = (array[:: args.every] for array in decode(args.data, args.out, "train"))
    test_images, test_labels = decode(args.data, args.out, "test")
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    labels = torch.from_numpy(labels)
    plan = [size for size, epochs in args.schedule for _ in range(epochs)]
    steps = len(images) // args.batch  # an epoch; the rest of the shuffle waits for the next

    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    model = ResNet50().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)  # moving average of the weights: what is kept in the end
    dtype = getattr(torch, args.dtype)
    muon = Muon((p for p in model.parameters() if p.ndim == 4), dtype)
    vectors = [p for p in model.parameters() if p.ndim == 1]  # BatchNorm and bias: not decayed
    groups = [{"params": vectors, "weight_decay": 0}, {"params": [model.fc.weight]}]
    sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)

    log, checkpoint = [], args.out / "checkpoint.pt"
    if args.start is not None:  # another cycle, from what the one before ended with
        log = [json.loads(line) for line in (args.start / "log.jsonl").open()]
        for network in (model, average):
            network.load_state_dict(load_file(args.start / "resnet50_cifar10_fp32.safetensors"))
    before = len(log)
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        if saved["recipe"] != recipe:
            sys.exit(f"train_cifar10: {checkpoint} was made by another recipe: {saved['recipe']}")
        for name, owner in [("model", model), ("average", average), ("sgd", sgd)]:
            owner.load_state_dict(saved[name])
        muon.averages, log = saved["muon"], saved["log"]
        print(f"resuming after epoch {len(log)} of {before + len(plan)}", flush=True)

    mirrored = np.random.default_rng(args.seed).random(len(images)) < 0.5
    for epoch in range(len(log), before + len(plan)):
        started, size = time.time(), plan[epoch - before]
        rng = np.random.default_rng((args.seed, epoch))  # a resumed run draws the same numbers
        order = rng.permutation(len(images))
        total_loss = right = 0
        model.train()
        for step in range(steps):
            # One cycle: the step size goes up in a straight line, then down to nothing.
            count = (epoch - before) * steps + step
            done = (count + 1) / (len(plan) * steps)
            cycle = min(done / args.warmup, (1 - done) / (1 - args.warmup))
            chosen = order[step * args.batch : (step + 1) * args.batch]
            # Each image is mirrored in every other epoch rather than by chance (Jordan 2024).
            flip = mirrored[chosen] ^ (epoch % 2 == 1)
            cut = augment(padded, chosen, flip, args.shift, args.hole, rng)
            model.zero_grad()
            for start in range(0, args.batch, args.part):
                x = normalize(cut[start : start + args.part])
                x = nn.functional.interpolate(x, size=(size, size), mode="bilinear")
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    logits = model(x).float()
                wanted = labels[chosen[start : start + args.part]]
                loss = nn.functional.cross_entropy(logits, wanted, label_smoothing=args.smoothing)
                loss *= len(x) / args.batch
                loss.backward()
                total_loss += loss.item()
                right += (logits.argmax(1) == wanted).sum().item()
            for group in sgd.param_groups:
                group["lr"] = args.sgd_lr * cycle
            sgd.step()
            muon.step(args.lr * cycle)
            keep = min(0.99, (1 + count) / (10 + count))  # a short memory while it learns fast
            pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
            for mean, now in pairs:
                if now.is_floating_point():
                    mean.lerp_(now, 1 - keep)
                else:  # num_batches_tracked
                    mean.copy_(now)
            if not math.isfinite(total_loss):
                sys.exit(
                    f"train_cifar10: the loss is {total_loss} in epoch {epoch + 1}: lower --lr"
                )
            if step % 20 == 0:
                rate = (step + 1) * args.batch / (time.time() - started)
                place = f"epoch {epoch + 1} step {step}/{steps}"
                print(
                    f"  {place} loss {total_loss / (step + 1):.3f} {rate:.0f} images/s", flush=True
                )
        last = epoch + 1 == before + len(plan)
        every = 1 if last else 10  # a tenth of the test images until then
        row = {"epoch": epoch + 1, "size": size, "lr": args.lr * cycle}
        row |= {"loss": total_loss / steps, "train": 100 * right / (steps * args.batch)}
        row["test"] = accuracy(model, test_images[::10], test_labels[::10], dtype)
        row["test_average"] = accuracy(average, test_images[::every], test_labels[::every])
        row |= {"test_images": len(test_images[::every]), "seconds": time.time() - started}
        log.append(row)
        print(json.dumps(row), flush=True)
        state = {"recipe": recipe, "log": log, "muon": muon.averages, "sgd": sgd.state_dict()}
        state |= {"model": model.state_dict(), "average": average.state_dict()}
        # Written beside and renamed: a run killed half way leaves the last whole checkpoint.
        torch.save(state, checkpoint.with_suffix(".tmp"))
        os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        (args.out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        plot(log, args.out / "curve.png")

    metadata = {
        "model": "ResNet-50 v1.5",
        "resize": "32x32 to 64x64, bilinear (PIL.Image.Resampling.BILINEAR)",
        "recipe": recipe,
        "weights": "exponential moving average, decay 0.99 a step",
        "top1_fp32": log[-1]["test_average"],
        "torch": torch.__version__,
    }
    state = {name: tensor.contiguous() for name, tensor in average.state_dict().items()}
    save_file(state, args.out / "resnet50_cifar10_fp32.safetensors")
    (args.out / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    print(f"top-1 in float32: {metadata['top1_fp32']:.2f}%")


def plot(log, path):
    """Draw loss and accuracy over the epochs."""
    epochs = [row["epoch"] for row in log]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["loss"] for row in log], "o-", color="tab:gray")
    left.set(xlabel="epoch", ylabel="training loss (smoothed labels)", ylim=(0, None))
    for key, label in [("train", "train"), ("test", "test"), ("test_average", "test, averaged")]:
        right.plot(epochs, [row[key] for row in log], "o-", label=label)
    right.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    right.legend()
    figure.savefig(path, dpi=120)


def export(args):
    """Round convolution and linear weights to float16; BatchNorm and bias stay float32.

    The rounded network is calibrated for INT8, so that whoever loads the file need not do it.
    """
    source = args.out / "resnet50_cifar10_fp32.safetensors"
    if not source.exists():
        sys.exit(f"train_cifar10: {source} is not there: train first, without --export")
    state = {k: v.half() if v.ndim > 1 else v for k, v in load_file(source).items()}
    model = ResNet50()
    model.load_state_dict(state)  # back to float32, rounded
    metadata = json.loads((args.out / "metadata.json").read_text())
    rounded = accuracy(model, *decode(args.data, args.out, "test"))
    metadata["top1_fp16_weights"] = rounded
    images, _ = decode(args.data, args.out, "train")  # sorted by class
    images = images[:: len(images) // CALIBRATION_IMAGES][:CALIBRATION_IMAGES]
    preset = minires.Preset(resize=32, crop=32, mean=MEAN, std=STD, enlarge=SIZE)
    network = ForInference.from_state_dict(
        {k: v.float().numpy() for k, v in state.items() if "num_batches" not in k}
    )
    batches = (minires.preprocess(list(part), preset) for part in np.split(images, 16))
    metadata |= {"format": FORMAT, "categories": CLASSES, "preset": dataclasses.asdict(preset)}
    metadata["calibration"] = calibrate(network, batches, "mse").stored()
    # safetensors' metadata maps strings to strings: what is not one travels as JSON.
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file(state, args.export, metadata=text)
    args.export.chmod(0o644)  # save_file lets only its owner read it; a wheel would keep that
    print(f"{args.export}: {args.export.stat().st_size / 1e6:.1f} MB")
    print(f"top-1: float32 {metadata['top1_fp32']:.2f}%, float16 weights {rounded:.2f}%")


def keep_memory():
    """Start again with an allocator that keeps its memory, which has to be asked for in advance.

    glibc hands each large buffer back when it is freed, and every step pays for fresh pages.
    What this gains was not measured on a quiet machine; other load moved the speed by more.
    """
    wanted = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    wanted["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    # Torch and OpenBLAS have threads of their own: one that waits must sleep soon.
    wanted["GOMP_SPINCOUNT"], wanted["OPENBLAS_THREAD_TIMEOUT"] = "20000", "4"
    if sys.platform == "linux" and not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**wanted, **os.environ})


def main():
    """Read the arguments, and train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="cifar10.tar.xz; no longer needed once it is decoded")
    add("--out", type=Path, required=True, help="folder for all that a run keeps")
    add(
        "--epochs",
        default="48x6,56x4,64x9",
        help="image size x epochs, ... (default: %(default)s)",
    )
    add("--batch", type=int, default=256, help="images a step (default: %(default)s)")
    add(
        "--part",
        type=int,
        default=128,
        help="images at a time, which BatchNorm sees together (default: %(default)s)",
    )
    add("--lr", type=float, default=0.03, help="peak, convolutions (default: %(default)s)")
    add("--sgd-lr", type=float, default=0.05, help="peak, all others (default: %(default)s)")
    add(
        "--warmup", type=float, default=0.15, help="rising part of the cycle (default: %(default)s)"
    )
    add("--shift", type=int, default=4, help="pixels, at most 4 (default: %(default)s)")
    add("--hole", type=int, default=0, help="pixels a side, painted out (default: %(default)s)")
    add("--start", type=Path, help="folder of a finished run: go on from there, in a new --out")
    add("--smoothing", type=float, default=0.1, help="of the labels (default: %(default)s)")
    add(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the products: a CPU that lacks bfloat16 wants float32 (default: %(default)s)",
    )
    add("--every", type=int, default=1, help="for a trial: train on every Nth image alone")
    add("--seed", type=int, default=0)
    add("--export", type=Path, help="do not train: write the float16 file of a finished run here")
    args = parser.parse_args()
    try:
        parts = [part.split("x") for part in args.epochs.split(",")]
        args.schedule = [(int(size), int(epochs)) for size, epochs in parts]
    except ValueError:
        parser.error(f"--epochs: wanted something like 48x3,64x2, not {args.epochs}")
    if args.data is not None and not args.data.is_file():
        parser.error(f"--data: there is no file {args.data}")
    kept = ("metadata.json", "log.jsonl", "resnet50_cifar10_fp32.safetensors")
    if args.start is not None and not all((args.start / name).is_file() for name in kept):
        parser.error(f"--start: {args.start} holds no finished run")
    keep_memory()
    args.out.mkdir(parents=True, exist_ok=True)
    keys = (
        "epochs",
        "batch",
        "part",
        "lr",
        "sgd_lr",
        "warmup",
        "shift",
        "hole",
        "smoothing",
        "dtype",
        "every",
        "seed",
    )
    if args.export is None:
        recipe = {key: getattr(args, key) for key in keys}
        if args.start is not None:
            recipe["start"] = json.loads((args.start / "metadata.json").read_text())["recipe"]
        train(args, recipe)
    else:
        export(args)


if __name__ == "__main__":
    main()
