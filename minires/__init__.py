"""ResNet-50 inference from scratch: NumPy for the definitions, Numba for the speed."""
