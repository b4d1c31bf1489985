#!/usr/bin/env bash
# Makes .bench/contenders, the Python environment of what tensorkeep is measured beside. Does nothing where it was done before
# and bench/contenders.txt is the same. Backup tools that the storage table also shows come from the system's packages, when
# root; without them the table leaves them out and says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive
scripts/setup.sh dev

folder=.bench/contenders
mkdir -p .bench
exec 9>.bench/.contenders-lock
flock 9

stamp=$folder/.installed
state=$(cat bench/contenders.txt scripts/contenders.sh | sha256sum)
[ "$(cat "$stamp" 2>/dev/null)" != "$state" ] || exit 0

echo "bench: installing the contenders (some minutes, once)" >&2
rm -rf "$folder"
.venv/bin/python -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --requirement bench/contenders.txt </dev/null
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v restic && command -v borg; } >/dev/null; then
    { apt-get update -qq && apt-get install -qq -y --no-install-recommends restic borgbackup; } </dev/null >/dev/null ||
        echo "bench: restic and borgbackup could not be installed: the storage table will be without them" >&2
fi
echo "$state" >"$stamp"
