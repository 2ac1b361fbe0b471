"""`python -m prismfl`: the command line."""

from prismfl.cli.main import main

main()
