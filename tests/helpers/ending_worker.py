"""A process of a list that ends at the pair "bad". A spawned one imports it by name, as it cannot do with a test."""

import os

from rrl_match.io import batch


def start(options, folder):
    """Takes the part of ``batch._start_worker``."""
    batch._start_worker(options, folder)
    register = batch.register_files

    def register_or_end(matcher, pair, *rest):
        if pair.name == "bad":
            os._exit(1)
        return register(matcher, pair, *rest)

    batch.register_files = register_or_end
