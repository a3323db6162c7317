"""The ladder: a convolution from its definition to the engine, one idea a rung, one file a rung.

A rung calls the microkernel in three lines, kept so by `fmt: skip`: one line for each of the 15
operands would bury the rung's loops, and a rung has only 60 lines.
"""
