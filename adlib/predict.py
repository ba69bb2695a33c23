"""Classify a scan from the command line: ``python -m adlib.predict FILE``."""

import sys

from adlib.classify.prediction import main

if __name__ == "__main__":
    sys.exit(main())
