"""How good a model is: perplexity, KL divergence and sampled text, computed by llama.cpp itself.

Needs the optional extra `llama` (pip install 'ggufmerge[llama]'); merging itself never does.

    from ggufmerge.evaluate import LlamaModel, perplexity
    with LlamaModel("model.gguf") as model:
        print(perplexity(model, text).value)
"""

import sys
import types
from typing import Any

from ggufmerge.evaluate.generate import chat_prompt, generate
from ggufmerge.evaluate.llama import LlamaModel
from ggufmerge.evaluate.metrics import KLDivergence, Perplexity, kl_divergence, perplexity

__all__ = ["KLDivergence", "LlamaModel", "Perplexity", "chat_prompt", "generate", "kl_divergence", "perplexity"]


class _Callable(types.ModuleType):
    """This package, which has the name of the public function `ggufmerge.evaluate`: Python puts an imported package
    under its name into the one above, so it has to be what is called there.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `ggufmerge.evaluate.scores.evaluate`."""
        import ggufmerge
        from ggufmerge.evaluate.scores import evaluate

        return ggufmerge._for_python(evaluate, "evaluate")(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
