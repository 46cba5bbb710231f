"""Plan, then run: a recipe and the headers of its models become a plan; the plan becomes a file."""

from ggufmerge.engine.build import build
from ggufmerge.engine.plan import Plan
from ggufmerge.engine.planner import make_plan
from ggufmerge.engine.progress import Progress
from ggufmerge.engine.run import BuildReport, run

__all__ = ["BuildReport", "Plan", "Progress", "build", "make_plan", "run"]
