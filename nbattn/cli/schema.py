"""`nbattn schema`: print the JSON schema of configurations."""

from __future__ import annotations

import argparse
import json

from nbattn.cli import screen
from nbattn.cli.parser import Parser

_DESCRIPTION = """
Print the JSON schema of configurations: masks, layers and plan requests.
Editors use it to complete keys and to mark mistakes.
"""
_EPILOG = """
examples:
  nbattn schema > nbattn.schema.json
  # first line of a YAML file, for editors with a YAML language server
  # yaml-language-server: $schema=nbattn.schema.json
"""


def parser() -> Parser:
    """Return the parser of the command."""
    return Parser("schema", "print the JSON schema of configurations", _DESCRIPTION, _EPILOG)


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    from nbattn.config import schema

    screen.show(json.dumps(schema(), indent=1))
    return 0
