#!/usr/bin/env bash
# The main job, from a fresh clone: installs into .venv, then shows every step on real and generated weights in .demo/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
scripts/setup.sh runtime
export PATH="$PWD/.venv/bin:$PATH"
exec python -m scripts.demo "$@"
