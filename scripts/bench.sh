#!/usr/bin/env bash
# Measures. `scripts/bench.sh run [load push …] [--quick]` prints tables and writes bench/results/, `compare` holds a result
# beside an earlier one, `document` writes docs/performance.md from one, `accept` holds figures to bars; also `splitting`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
program=${1:-run}
[ $# = 0 ] || shift
case $program in
run | document | accept) scripts/contenders.sh ;;
*) scripts/setup.sh dev ;;
esac
export PATH="$PWD/.venv/bin:$PATH"
exec python "bench/$program.py" "$@"
