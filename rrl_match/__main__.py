"""``python -m rrl_match``: the command ``rrl-match``."""

import sys

from rrl_match.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
