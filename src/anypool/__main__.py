"""`python -m anypool` is the `anypool` command."""

import sys

from anypool.cli import main

if __name__ == "__main__":
    sys.exit(main())
