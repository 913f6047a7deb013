"""How far from the processor's float32 a device may end up, in each precision."""

DTYPES = ("float32", "float16", "bfloat16")
# Largest difference, relative to the largest value of its tensor, through a whole network.
# float32: the same numbers added up in another order, some 1e-7 for each of about 60 layers in a row.
# float16 rounds to 2^-11 and bfloat16 to 2^-8 after every layer, the sums themselves are in float32: about the rounding
# times the root of the number of layers, and a layer whose values cancel has several times that.
TOLERANCE = {"float32": 5e-5, "float16": 0.012, "bfloat16": 0.08}
