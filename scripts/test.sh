#!/usr/bin/env bash
# All checks, then all tests, in a process for each core; arguments go to pytest. Nothing is read from stdin.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
scripts/check.sh
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
# Each process starts with a stretch of the tests in their order (their modules' fixtures are made once), and steals at the end.
exec python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
