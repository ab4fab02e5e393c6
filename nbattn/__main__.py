"""`python -m nbattn` runs the command line."""

from nbattn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
