"""What a user asks for, from end to end: build, merge, bake, quantize, extract, compare, and what it will cost."""

from ggufmerge.engine.build import build
from ggufmerge.planning.plan import Plan
from ggufmerge.planning.planner import make_plan
from ggufmerge.running.progress import Progress
from ggufmerge.running.run import BuildReport, run

__all__ = ["BuildReport", "Plan", "Progress", "build", "make_plan", "run"]
