"""`python -m paribus`: the command line, also under torchrun."""

from paribus.cli import main

main()
