"""How good a model is: perplexity, KL divergence and sampled text, computed by llama.cpp itself.

Needs the optional extra `llama` (pip install 'ggufmerge[llama]'); merging itself never does.

    from ggufmerge.evaluate import LlamaModel, perplexity
    with LlamaModel("model.gguf") as model:
        print(perplexity(model, text).value)
"""

from ggufmerge.evaluate.generate import chat_prompt, generate
from ggufmerge.evaluate.llama import LlamaModel
from ggufmerge.evaluate.metrics import KLDivergence, Perplexity, kl_divergence, perplexity

__all__ = ["KLDivergence", "LlamaModel", "Perplexity", "chat_prompt", "generate", "kl_divergence", "perplexity"]
