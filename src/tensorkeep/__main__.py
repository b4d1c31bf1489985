"""``python -m tensorkeep``: the command line."""

from tensorkeep.cli.main import run

if __name__ == "__main__":
    run()
