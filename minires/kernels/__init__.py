"""The same operators as in reference.py, compiled: microkernels, and the engine around them."""
