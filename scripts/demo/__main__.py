"""The door of the demo: arguments in, exit code out; 0 only where every check held."""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.demo.play import Play
from scripts.demo.stage import CheckFailed, Stage
from tensorkeep import TensorkeepError

FOLDER = Path(".demo")


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description="the main job of tensorkeep, step by step")
    parser.add_argument("--llama", choices=["tiny", "small"], default="tiny", help="100 MB (default) or 2.2 GB")
    words = parser.parse_args()
    if FOLDER.is_symlink():
        print(f"demo: {FOLDER} is a link; remove it, the demo makes a folder of its own", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"demo: another one is at work in {FOLDER.absolute()}; wait for it", file=sys.stderr)
            return 1
        return _run(words.llama)


def _run(llama: str) -> int:
    run = FOLDER / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    # The user's own store and cache are never touched, by the commands either.
    os.environ["TENSORKEEP_STORE"] = str(run / "store")
    os.environ["XDG_CACHE_HOME"] = str(run.absolute() / "cache")
    stage = Stage()
    try:
        Play(stage, run, FOLDER / "models", llama).perform()
    except CheckFailed as failed:
        print(f"\ndemo: {failed}", file=sys.stderr)
        return 1
    except (TensorkeepError, OSError, subprocess.CalledProcessError) as error:
        step = stage.steps[-1]
        print(f"\ndemo: step {step.number}, {step.title}: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    stage.finish()
    print(f"demo: look at what it left: tensorkeep --store {run / 'store'} ls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
