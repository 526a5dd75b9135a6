"""``python -m decentral``, by which torchrun starts workers."""

from decentral.cli.__main__ import main

if __name__ == "__main__":
    main()
