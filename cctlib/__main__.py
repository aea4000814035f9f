"""`python -m cctlib`: the command line."""

from cctlib.cli import main

main()
