"""``python -m keyhaul`` is ``etl``."""

from keyhaul.cli.app import main

if __name__ == "__main__":
    main()
