"""`python -m llambert`."""

from llambert.cli import main

main()
