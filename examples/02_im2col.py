# %% [markdown]
# # 2. A convolution is a matrix product
#
# Each output pixel of a convolution is a sum of products. So is each element of a matrix product.
# *im2col* ("image to columns") copies the image so that both are the same sum. Then everything that
# multiplies matrices fast also convolves fast. The copy is large, but you do not need it. Store the
# image with its padding: then each input lies at a base address plus a constant (equation 2.2).

# %%
import matplotlib.pyplot as plt
import numpy as np

from minires.kernels.plan import Division, Tiling, lay_out
from minires.measure.plots import BLUE, GREY, ORANGE
from minires.model import resnet50_layers
from minires.reference import im2col_ref

# %% [markdown]
# ## Five by five, by hand
#
# Take one channel, a kernel of 3 x 3 and no padding. There are nine places for the kernel, so there
# are nine output pixels. Each is a sum of nine products.

# %%
image = np.arange(25, dtype=np.float32) ** 2 % 23
image = image.reshape(1, 5, 5, 1)  # (batch, in_h, in_w, in_c): NHWC
w = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32).reshape(1, 3, 3, 1)  # OHWI

direct = np.zeros((3, 3), np.float32)
for i in range(3):
    for j in range(3):
        direct[i, j] = (image[0, i : i + 3, j : j + 3, 0] * w[0, :, :, 0]).sum()
print(direct)
assert direct[0, 0] == (0 + 2 * 2 + 8) - (4 + 2 * 3 + 6) == -4, "the first, written out"

# %% [markdown]
# ## The same, as one matrix product
#
# Write the nine inputs of each output pixel into a row. The image becomes a matrix of M rows and K
# columns: M = batch x out_h x out_w counts output pixels, and K = k_h x k_w x in_c counts products.
# The weights become K x N: a column for each of the N output channels, in the order of a row's
# inputs. The product of the two is the convolution. Change its shape from (M, N) to
# (batch, out_h, out_w, N), and you have the output.

# %%
columns = im2col_ref(image, 3, 3, stride=1, padding=0)  # (M, K)
product = columns @ w.reshape(1, 9).T  # (M, N)
print(f"(M, K) = {columns.shape}, (K, N) = (9, 1)")
assert np.array_equal(product.reshape(3, 3), direct)

# %%
#| code: folded
#| alt: The image of five by five numbers, with the three by three in its middle shaded. Beside it
#|   the matrix of nine by nine. Its fifth row is shaded, and holds the same nine numbers.
#| caption: The image and its matrix. The output pixel in the middle reads the shaded inputs. They
#|   are the fifth row of the matrix.


def draw_cells(axes, values, shaded, title):
    """Draw a table of numbers, and shade some: a colour by (row, column)."""
    for (i, j), value in np.ndenumerate(values):
        color = shaded.get((i, j), "none")
        axes.add_patch(plt.Rectangle((j, i), 1, 1, facecolor=color, edgecolor=GREY, alpha=0.5))
        axes.text(j + 0.5, i + 0.55, f"{value:.0f}", ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.05, values.shape[1] + 0.05), ylim=(values.shape[0] + 0.05, -0.05))
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=10)
    axes.axis("off")


figure, (left, right) = plt.subplots(1, 2, width_ratios=(5, 9), layout="constrained")
middle = {(i, j): ORANGE for i in (1, 2, 3) for j in (1, 2, 3)}
draw_cells(left, image[0, :, :, 0], middle, "the image")
draw_cells(right, columns, {(4, k): ORANGE for k in range(9)}, "a row for each output pixel")
plt.show()

# %% [markdown]
# ## What the copy costs
#
# Neighbouring output pixels share most of their inputs, so im2col writes an input up to nine times.
# For a 3 x 3 layer of ResNet-50, with 56 x 56 pixels of 64 channels of 4 bytes:

# %%
big = im2col_ref(np.zeros((1, 56, 56, 64), np.float32), 3, 3, stride=1, padding=1)
print(f"image {56 * 56 * 64 * 4 / 1e6:.1f} MB, matrix {big.nbytes / 1e6:.1f} MB")

# %% [markdown]
# ## Addresses instead of copies
#
# A row of the matrix says *where* an output pixel's inputs lie. Work those places out, and you do
# not need the row. NHWC stands for batch, height, width, channels: a pixel's C channels lie side by
# side, and so do the W pixels of a line. So channel c of the pixel in row i, column j is at
#
# $$
# \mathrm{address}(i, j, c) = (i W + j)\, C + c \tag{2.1}
# $$
#
# A padded convolution also reads outside the image. Asking "am I outside?" at each input would put
# a test into the innermost loop. So the engine keeps the zeros in memory: it stores each image with
# its padding around it, and W counts the padding too. (In INT8 the byte that stands for zero may
# not be 0: see [chapter 5](05_eight_bits).) A place (a, b) of the kernel is called a *tap*. For
# output pixel (y, x), with stride s, it reads the stored pixel (s y + a, s x + b). Put that into
# equation 2.1, and sort the terms by what they depend on:
#
# $$
# \begin{aligned}
# \mathrm{address} &= ((s y + a) W + s x + b)\, C + c \\
# &= \underbrace{(s y W + s x)\, C}_{\text{base of the pixel}}
# + \underbrace{(a W + b)\, C + c}_{\text{offset of the tap}}
# \end{aligned} \tag{2.2}
# $$
#
# The base knows nothing of the tap. The offset knows nothing of the pixel: it is one constant for
# each tap and channel, the same everywhere in the image, at the edges too. So the whole matrix is a
# list of bases and a list of offsets. Here they are for the five by five image, with padding:

# %%
W = 5 + 2  # the width of a line, with one pixel of padding on each side
stored = np.pad(image[0, :, :, 0], 1).ravel()  # as it lies in memory
bases = np.array([y * W + x for y in range(5) for x in range(5)])  # (M,) stride 1, C = 1
offsets = np.array([a * W + b for a in range(3) for b in range(3)])  # (K,)
print("offsets", offsets)
matrix = stored[bases[:, None] + offsets]  # (M, K)
assert np.array_equal(matrix, im2col_ref(image, 3, 3, stride=1, padding=1))

# %%
#| code: folded
#| alt: A square of seven by seven cells with the addresses 0 to 48. Its border is grey. Three by
#|   three cells are shaded blue in the upper left corner, three by three orange further down.
#|   Below, memory is one long strip, in which each of the two colours makes three runs of three.
#| caption: The stored image, with its padding in grey. Each cell shows its address. The output
#|   pixel (0, 0) has the base 0 and reads the blue cells, most of them padding. The pixel (3, 2)
#|   has the base 3 x 7 + 2 = 23 and reads the orange ones. Both add the same nine offsets. Below is
#|   the same as it lies in memory.
shades = {(i, j): GREY for i in range(7) for j in range(7) if {i, j} & {0, 6}}
shades |= {divmod(address, 7): BLUE for address in 0 + offsets}
shades |= {divmod(address, 7): ORANGE for address in 23 + offsets}
figure, (above, below) = plt.subplots(
    2, 1, figsize=(5.6, 4.6), height_ratios=(9, 1), layout="constrained"
)
draw_cells(above, np.arange(49).reshape(7, 7), shades, "in the image's shape")
for address in range(49):
    color = shades.get(divmod(address, 7), "none")
    below.add_patch(plt.Rectangle((address, 0), 1, 1, fc=color, ec=GREY, alpha=0.5))
below.set(xlim=(-0.2, 49.2), ylim=(0, 1), yticks=[], xticks=np.arange(0, 49, 7) + 0.5)
below.set_xticklabels(range(0, 49, 7))
below.set_title("in memory, address by address", fontsize=10)
plt.show()

# %% [markdown]
# The strip shows one thing more. The taps of one line of the kernel lie side by side, and so do
# their channels. A row of the matrix is k_h runs of k_w x C values, and W x C values lie between
# the starts of two runs. Within a run, the engine just reads on, and never asks where a pixel ends.
#
# This is *implicit* im2col, and minires's engine works like that. Its plan holds a base for each
# row of the matrix. The code calls these bases `x_offsets`, because each counts from the image's
# first byte. Beside them it holds the number of runs and the distance from run to run,
# `run_stride`. A kernel of 3 x 3 has nine taps, but three runs. Offsets and distances are in bytes.
# Here is the layer from above. A line is 58 pixels of 64 channels of 4 bytes, so 14,848 bytes:

# %%
tiling = Tiling(item=4, group=1, quantized=False, rows=6, columns=16)  # FP32
plan = lay_out(resnet50_layers(), (1, 3, 224, 224), tiling, Division(0, 1, 1))
gemm = next(step.gemm for step in plan.steps if step.layer.name == "layer1.0.conv2")
print("first line of the image ", gemm.x_offsets[:3], "...")
print("second line of the image", gemm.x_offsets[56:59], "...")
print(f"{gemm.runs} runs, {gemm.run_stride} bytes apart")
assert gemm.run_stride == gemm.x_offsets[56] == 58 * 64 * 4

# %% [markdown]
# Choose a pixel of a real layer, and see which inputs it reads. They are a row of the matrix:
#
# ```{lab} pixel
# ```
#
# ## Exercises
#
# **1.** The stride becomes 2. Which rows remain of the first matrix, the one without padding?
#
# <details>
# <summary>Answer</summary>
#
# Those of every second output pixel along both axes: the first, third, seventh and ninth row. In
# equation 2.2 only the base changes.
#
# </details>
#
# **2.** What does im2col do for a kernel of 1 x 1 with stride 1?
#
# <details>
# <summary>Answer</summary>
#
# Nothing. The matrix is the image itself, with a row for each pixel and a column for each channel.
# The only tap has the offset c. 36 of ResNet-50's 53 convolutions are 1 x 1, and 33 of these have
# stride 1.
#
# </details>
#
# **3.** Someone forgets to store the padding: W is 5, and the base of pixel (y, x) is
# (y - 1) x 5 + (x - 1). What does the first tap of output pixel (2, 0) read?
#
# <details>
# <summary>Answer</summary>
#
# Its address is 1 x 5 - 1 = 4. It should read a zero left of the second line, but it reads the last
# pixel of the first line. The image leaks around its edges, and nothing crashes.
#
# </details>
#
# **4.** How much memory does stored padding add at 56 x 56 pixels, and at 7 x 7?
#
# <details>
# <summary>Answer</summary>
#
# (58 / 56)² = 1.07, so 7% more. (9 / 7)² = 1.65, so 65% more. Both are far less than the 900% that
# the matrix adds: it is nine times as large as the image, and lies beside it.
#
# </details>

# %%
#| cell: All four answers, computed
strided = im2col_ref(image, 3, 3, stride=2, padding=0)
assert np.array_equal(strided, columns[[0, 2, 6, 8]])
assert np.array_equal(im2col_ref(image, 1, 1, stride=1, padding=0), image.reshape(25, 1))
kernels = [layer.kernel for layer in resnet50_layers() if layer.op == "conv"]
assert (kernels.count(1), len(kernels)) == (36, 53)
assert np.ravel(image)[(2 - 1) * 5 + (0 - 1)] == image[0, 0, 4, 0]
assert [round(100 * ((n + 2) / n) ** 2 - 100) for n in (56, 7)] == [7, 65]
