"""The ladder: a convolution from its definition to the engine, one idea a rung, one file a rung."""
