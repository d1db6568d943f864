import argparse
import logging
import sys

from rrl_match.training.commands import add_commands

logging.basicConfig(level=logging.INFO, format="%(message)s")
p = argparse.ArgumentParser()
add_commands(p.add_subparsers(required=True))
a = p.parse_args()
sys.exit(a.run(a))
