from ggufmerge.cli import main

main()
