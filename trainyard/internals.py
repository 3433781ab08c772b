"""What argparse knows of a parser and has no public name for. tests/unit/test_internals.py holds each symbol."""
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false

import argparse
from collections.abc import Mapping
from typing import cast


def options_of(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """Each long flag, without its dashes -> whether it takes no value."""
    return {text[2:]: action.nargs == 0 for action in parser._actions for text in action.option_strings
            if text.startswith("--") and text != "--help"}


def subcommands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> the parser of a command; none where the parser has no commands."""
    groups = [cast(Mapping[str, argparse.ArgumentParser], action.choices) for action in parser._actions
              if isinstance(action, argparse._SubParsersAction)]
    return {name: below for group in groups for name, below in group.items()}
