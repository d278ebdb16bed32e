"""`python -m safe_dtype` is the command `safe-dtype`."""

from .cli import main

if __name__ == "__main__":
    main()
