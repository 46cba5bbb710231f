"""`python -m ggufmerge` is the command `ggufmerge`."""

from ggufmerge.cli import main

main()
