"""Networks with one bug each, for the final project of chapter 17. Find it before you read this."""

import numpy as np

from minires.model import ResNet50
from minires.reference import QParams


def replant(model: ResNet50, name: str, **changes: object) -> ResNet50:
    """Make an INT8 network with other parameters in one layer."""
    params = {**model.params, name: model.params[name]._replace(**changes)}
    suspect = ResNet50(model.layers, params, "int8", model.meta)
    suspect.backend = model.backend
    return suspect


def plant(model: ResNet50, number: int) -> ResNet50:
    """Make an INT8 network with a bug in a layer that has padding; the number decides which.

    A weight is off by one, or a channel's outputs are, or the byte that padding holds.
    """
    random = np.random.default_rng(number)
    padded = [layer.name for layer in model.layers if layer.padding and layer.op == "conv"]
    name = str(random.choice(padded))
    p, y_qparams = model.params[name], model[name].qparams
    assert y_qparams is not None
    c, k = (int(random.integers(n)) for n in p.w_s8.shape)
    w_s8, bias_s32 = p.w_s8.copy(), p.bias_s32.copy()
    w_s8[c, k] ^= 1
    bias_s32[c] += int(y_qparams.scale / (p.x_qparams.scale * p.w_scale[c]))  # a step of the output
    padding = QParams(p.x_qparams.scale, p.x_qparams.zero_point + 1)  # the bias knows the right one
    bugs = {"w_s8": w_s8, "bias_s32": bias_s32, "x_qparams": padding}
    bug = str(random.choice(list(bugs)))
    return replant(model, name, **{bug: bugs[bug]})
