"""`python -m unitkit.cli` is `unitkit`."""

from unitkit.cli import main

main()
