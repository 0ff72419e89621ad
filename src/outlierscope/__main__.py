"""``python -m outlierscope``."""

from outlierscope.cli import main

if __name__ == "__main__":
    main()
