"""``python -m keyhaul`` is ``etl``."""

from keyhaul.cli.start import main

if __name__ == "__main__":
    main()
