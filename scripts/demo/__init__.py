"""The demo: the main job of tensorkeep from the beginning to the end, each claim held to by a check.

    make demo                            # installs into .venv first
    scripts/demo.sh --llama small        # with a 2.2 GB checkpoint in place of the 100 MB one

Everything lies under ``.demo/``: ``models/`` is kept between runs, ``run/`` is made anew by each and left to look at.
"""
