"""`nbattn schema`: print the JSON schema of configurations."""

from __future__ import annotations

import argparse
import json
from typing import Any

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


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "schema",
        help="print the JSON schema of configurations",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the schema."""
    from nbattn.config import schema

    print(json.dumps(schema(), indent=1))
    return 0
