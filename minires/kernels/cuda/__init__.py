"""The network on an NVIDIA GPU: the CPU's plan, run by thread blocks and tensor cores."""
