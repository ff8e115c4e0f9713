"""`python -m paribus`: the command line, also under torchrun."""

from paribus.cli.commands import main

main()
