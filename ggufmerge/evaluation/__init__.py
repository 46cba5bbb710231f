"""How good a model is: perplexity, KL divergence and sampled text, computed by llama.cpp itself.

Needs the optional extra `llama` (pip install 'ggufmerge[llama]'); merging itself never does.

    from ggufmerge.evaluation import LlamaModel, perplexity
    with LlamaModel("model.gguf") as model:
        print(perplexity(model, text).value)
"""

from ggufmerge.evaluation.generate import chat_prompt, generate
from ggufmerge.evaluation.llama import LlamaModel
from ggufmerge.evaluation.metrics import KLDivergence, Perplexity, kl_divergence, perplexity

__all__ = ["KLDivergence", "LlamaModel", "Perplexity", "chat_prompt", "generate", "kl_divergence", "perplexity"]
