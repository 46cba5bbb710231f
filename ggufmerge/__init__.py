"""Merge the weights of quantized GGUF language models.

    import ggufmerge
    model = ggufmerge.open("model.gguf")
    model.tensors["blk.0.attn_q.weight"].dequantize()
"""
