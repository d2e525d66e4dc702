"""``python -m refgeo``."""

from refgeo.cli import main

if __name__ == "__main__":
    main()
