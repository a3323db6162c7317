"""The GPU's ladder: from a thread an output to tensor cores that are fed in stages."""
