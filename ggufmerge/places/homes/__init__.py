"""Where other programs keep their models, one file a program: LM Studio, llama.cpp, KoboldCpp, text-generation-webui.

Each says what a folder of its program looks like, how the files of a model are called there, and which entry of its
settings a model needs to be listed and to run. `placing.py` then puts the files there, whole or not at all.
"""

from ggufmerge.places.homes.finding import find_home
from ggufmerge.places.homes.home import Entry, Home, Model, Placed
from ggufmerge.places.homes.lmstudio import lmstudio_home

__all__ = ["Entry", "Home", "Model", "Placed", "find_home", "lmstudio_home"]
