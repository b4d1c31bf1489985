#!/usr/bin/env bash
# All checks, then all tests; arguments go to pytest. Nothing is read from stdin.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
scripts/check.sh
export PATH="$PWD/.venv/bin:$PATH:/usr/sbin:/sbin"
exec python -m pytest "$@"
