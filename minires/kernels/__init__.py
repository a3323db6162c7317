"""The same operators as reference/, compiled: microkernels, and the engine around them."""
