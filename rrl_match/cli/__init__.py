"""The command ``rrl-match``: a module a command, which adds its parser and runs what it names."""
