"""The command by `python -m deitkit`."""

from .cli import main

if __name__ == "__main__":  # a worker process that is spawned imports this module again
    main()
