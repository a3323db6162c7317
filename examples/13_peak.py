"""
Your machine's peak
===================

A fraction of the peak says more than a time: it says how much is left. The peak is arithmetic,
lanes x products x 2 x rate x clock, but the clock moves and the rate is in no data sheet that one
has at hand. So it is measured.
"""

import matplotlib.pyplot as plt

from minires.profiling.machine import describe_machine, format_machine, measure_machine

# %%
# Measuring it
# ------------
#
# A loop that does nothing but multiply and add in registers: as many sums beside each other as the
# latency asks for, no loads, no stores. In between, a chain of instructions that take one cycle
# each tells the clock. ``minires peak`` prints the same.

peaks, memory = measure_machine()
print(describe_machine())
print(format_machine(peaks, memory).partition("what was timed")[0].rpartition("\n")[0])

# %%
# What was timed
# --------------
#
# The inner loop, as the compiler left it: each line has its own sum, so none waits for another.

print(peaks[0].assembly)

# %%
# The roofline
# ------------
#
# Few operations a byte, and the memory is the limit; many, and the arithmetic is. The corner
# between the two is where a layer should be to the right of (Williams et al. 2009).

fastest, slowest = max(peaks, key=lambda p: p.all_gops), memory[-1]
figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
intensity = [2**e for e in range(-2, 11)]
for p in peaks:
    axes.loglog(
        intensity, [min(p.all_gops, i * slowest.all) for i in intensity], label=p.instruction.name
    )
axes.set(
    xlabel="operations a byte", ylabel="10⁹ operations a second", title="from memory, all threads"
)
axes.legend()
plt.show()

# %%
# Exercise
# --------
#
# How many operations a byte must a layer have, so that reading from memory does not bound it?
#
# *Answer.* The peak over the bandwidth:

for p in peaks:
    print(f"{p.instruction.name}: {p.all_gops / slowest.all:.1f} operations a byte")
assert fastest.all_gops / slowest.all > 1
