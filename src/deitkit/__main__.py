"""The command, also by `python -m deitkit`."""

from __future__ import annotations


def main() -> None:
    """Runs it. Ctrl+C while it starts ends it without a traceback."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":  # a worker process that is spawned imports this module again
    main()
