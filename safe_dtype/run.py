"""`python -m safe_dtype.run SCRIPT ...` is `safe-dtype run SCRIPT ...`, for launchers that take a module."""

import sys

from .cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
