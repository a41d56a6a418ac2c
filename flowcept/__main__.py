"""``python -m flowcept`` is the command ``flowcept``."""

import sys


def main() -> None:
    """Entry point; Ctrl-C while the program is still being read leaves no trace of it."""
    try:
        from flowcept import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
