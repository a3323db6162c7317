# %% [markdown]
# # 2. A convolution is a matrix product
#
# An output pixel of a convolution is a sum of products, and so is an element of a matrix product.
# *im2col* ("image to columns") copies the image so that the two become the same sum; then whatever
# multiplies matrices fast also convolves fast. Here it is by hand, on five by five pixels.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minires.reference import im2col_ref

# %% [markdown]
# ## Five by five by hand
#
# One channel, a kernel of 3 x 3, no padding: nine output pixels, each a sum of nine products.

# %%
x = np.arange(25, dtype=np.float32) ** 2 % 23
x = x.reshape(1, 5, 5, 1)  # (batch, in_h, in_w, in_c): NHWC
w = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32).reshape(1, 3, 3, 1)  # OHWI

direct = np.zeros((3, 3), np.float32)
for i in range(3):
    for j in range(3):
        direct[i, j] = (x[0, i : i + 3, j : j + 3, 0] * w[0, :, :, 0]).sum()
print(direct)

# %% [markdown]
# The first of them, written out: of its nine pixels the left column less the right one, the middle
# row counting twice.

# %%
assert direct[0, 0] == (0 + 2 * 2 + 8) - (4 + 2 * 3 + 6) == -4

# %% [markdown]
# ## The same as one matrix product
#
# Each output pixel gets a row with the nine input pixels that it reads: the image becomes a matrix
# of M = batch x out_h x out_w rows and K = k_h x k_w x in_c columns. The weights are K x N, a
# column for each output channel. Their product is the convolution, with nothing left to do but to
# reshape. In red, what the middle output pixel reads, and its row.

# %%
#| alt: 02_im2col, a picture
columns = im2col_ref(x, 3, 3, stride=1, padding=0)  # (M, K)
product = columns @ w.reshape(1, 9).T  # (M, N)
print(f"(M, K) = {columns.shape}, (K, N) = (9, 1)")
assert np.array_equal(product.reshape(3, 3), direct)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for axes, values, title in [
    (left, x[0, :, :, 0], "the image"),
    (right, columns, "im2col: a row for each output pixel"),
]:
    axes.imshow(values, cmap="Blues", vmin=-10, vmax=40)
    for (i, j), value in np.ndenumerate(values):
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8)
    axes.set(title=title, xticks=[], yticks=[])
left.add_patch(plt.Rectangle((0.5, 0.5), 3, 3, fill=False, edgecolor="tab:red", linewidth=2))
right.add_patch(plt.Rectangle((-0.5, 3.5), 9, 1, fill=False, edgecolor="tab:red", linewidth=2))
plt.show()

# %% [markdown]
# ## What it costs
#
# Neighbouring pixels share most of what they read, so im2col writes every input value up to nine
# times. For a 3 x 3 layer of ResNet-50 at 56 x 56 with 64 channels:

# %%
big = im2col_ref(np.zeros((1, 56, 56, 64), np.float32), 3, 3, stride=1, padding=1)
print(f"image {56 * 56 * 64 * 4 / 1e6:.1f} MB, matrix {big.nbytes / 1e6:.1f} MB")

# %% [markdown]
# minires's definitions do just that. Its engine makes no such matrix: a row of it is *where* an
# output pixel's inputs lie, and addresses can be worked out instead of copied. This is called
# implicit im2col.
#
# ## Exercise
#
# With stride 2, which rows of the matrix above remain?
#
# *Answer.* Those of every other output pixel, along both axes: the first, third, seventh and
# ninth.

# %%
strided = im2col_ref(x, 3, 3, stride=2, padding=0)
assert np.array_equal(strided, columns[[0, 2, 6, 8]])

# %% [markdown]
# ## In your browser
#
# Choose a pixel of a real layer: its taps are a row of the matrix.
#
# ```{lab} pixel
# ```
