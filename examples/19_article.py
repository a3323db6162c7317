# %% [markdown]
# # Appendix. The article, seven years later
#
# In July 2019 AnandTech compared Cascade Lake servers with NVIDIA's GPUs on ResNet-50: 7844 images
# a second on two Xeon 9282 against 7636 on a V100; the reviewer's own server crashed before it
# passed 2000. Arithmetic can judge such figures.

# %%
import sys
import textwrap

import matplotlib.pyplot as plt
from bounds import GOP, format_machines, throughput_bounds
from machines import KNOWN, read_machines

from minires import MiniresError

# %% [markdown]
# ## The arithmetic
#
# An image takes 4.089 billion multiply-adds, twice as many operations. A machine with a peak of P
# operations a second cannot do more than P over that.

# %%
machines = {machine.name: machine for machine in read_machines()}
xeon, pair = machines["Xeon Platinum 8280"], machines["Xeon Platinum 9282"]
tops = 2 * pair.peaks["int8"]
print(f"an image: {GOP:.2f} GOP; two 9282: 2 x 56 cores x 256 x 2.6 GHz = {tops:.1f} TOP/s")
print(f"at most {2 * throughput_bounds(pair, 'int8')[0]:.0f} images a second")

# %% [markdown]
# ## The table
#
# Each figure with its kind, specification, vendor's claim, arithmetic or measurement, and its
# source. `python examples/19_article.py FILE` judges machines of your own in place of these, from
# a file in the form of `examples/machines.toml`.

# %%
try:
    judged = read_machines(sys.argv[1] if sys.argv[1:] else KNOWN)
except MiniresError as error:
    sys.exit(f"19_article.py: {error}")
for line in format_machines(judged).splitlines():
    print(textwrap.fill(line, 100, subsequent_indent=" " * 4) if len(line) > 100 else line)

# %% [markdown]
# ## What stands
#
# * 7878 (Intel's page) is 86% of the peak at the base clock (under AVX-512 the clock may be lower):
#   more than any engine here reaches on two cores, but v1 of the network is 6% less work. Still,
#   MLPerf's first checked round (v0.5, November 2019) has 5,966 for such a pair, three quarters.
# * It was not like against like: two parts of 400 W in INT8 against one of 300 W in mixed FP16. By
#   watt the V100 was 2.6 times as good. And 7844 is what Intel's page quotes for the *V100*.
# * The reviewer's run, less than 2000 on a pair of 8280, is at most 42% of their peak. A Titan RTX
#   for $2,499 needs less than a fifth of its own to be three times as fast; MLPerf has 16,563.
# * The answer to both was the T4: 4944 at 70 W, 7 times as many a watt as the pair of 9282.
# * minires can judge a GPU by running on it. On an H100 it makes 41,075 in INT8, and PyTorch makes
#   12,248 in FP16: same card, weights and images, another precision. TensorRT's 88,714 in INT8 is
#   2.2 times minires's, and 37% of the peak on paper. `docs/gpu.md` says where the rest goes.

# %%
#| alt: 19_article, a picture
plt.figure(figsize=(8, 2.8), layout="constrained")
for machine, claim in [(m, c) for m in judged for c in m.claims if not c.upper_limit]:
    label = f"{claim.parts} x {machine.name}, {claim.images_per_second:.0f}"
    by_watt = claim.images_per_second / (claim.parts * machine.watts)
    plt.barh(f"{label} ({claim.source.partition(',')[0]})", by_watt, color="tab:blue")
plt.xlabel("images a second and watt (claim over TDP)")
plt.gca().invert_yaxis()
plt.show()

assert round(7878 / (2 * throughput_bounds(pair, "int8")[0]), 2) == 0.86
assert round(2000 / (2 * throughput_bounds(xeon, "int8")[0]), 2) == 0.42
assert round((7636 / 300) / (7878 / 800), 1) == 2.6
assert round((4944 / 70) / (7878 / 800)) == 7
assert (round(5966 / 7878, 2), round(88714 / 41075, 1)) == (0.76, 2.2)
assert round(88714 / throughput_bounds(machines["H100 SXM"], "int8")[0], 2) == 0.37
assert throughput_bounds(machines["Titan RTX"], "int8")[0] / 5 > 3 * 2000

# %% [markdown]
# ## Exercise
#
# What would two 8280 do at the 9282's 86% of the peak?
#
# *Answer.* 0.86 x 2 x 28 cores x 256 x 2.7 GHz / 8.18 GOP:

# %%
images = 0.86 * 2 * throughput_bounds(xeon, "int8")[0]
print(f"{images:.0f} images a second")
assert 4000 < images < 4200
