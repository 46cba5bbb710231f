"""The rounding noise of quantized weights, read from their blocks: how large it is, and what is beside it."""
