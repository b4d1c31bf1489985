#!/usr/bin/env bash
# Measures: `scripts/bench.sh run` prints tables and writes bench/results/, `scripts/bench.sh accept` holds figures to bars.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
program=$1
shift
exec python "bench/$program.py" "$@"
