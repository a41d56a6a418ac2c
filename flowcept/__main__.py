"""``python -m flowcept`` is the command ``flowcept``."""

from flowcept.cli import main

main()
