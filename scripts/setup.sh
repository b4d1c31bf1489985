#!/usr/bin/env bash
# Makes .venv with this project in it: `scripts/setup.sh runtime` for using it, `scripts/setup.sh dev` for testing it.
# Does nothing where it was done before and pyproject.toml is the same. Installs what the system lacks by itself when root,
# and says what to install when not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin" PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

kind=${1:-runtime}
case $kind in
runtime) wanted=(-e .) extra=(safetensors) commands=() ;;
dev) wanted=(-e ".[dev]") extra=() commands=(jq strace zstd) ;;
*) echo "usage: scripts/setup.sh runtime|dev" >&2 && exit 2 ;;
esac
# The root-marked tests make file systems of their own; they are left out when not root, and so are their tools. So are, when
# not root and where they are not installed, the tests that run against real engines: Ceph's S3 gateway and PostgreSQL.
if [ "$kind" = dev ] && [ "$(id -u)" = 0 ]; then
    commands+=(mkfs.ext4 mkfs.xfs losetup mount ceph-mon ceph-osd radosgw ceph initdb)
fi

package_of() {
    case $1 in
    mkfs.ext4) echo e2fsprogs ;;
    mkfs.xfs) echo xfsprogs ;;
    losetup | mount) echo mount ;;
    ceph) echo ceph-common ;;
    initdb) echo postgresql ;;
    *) echo "$1" ;;
    esac
}

is_installed() {
    case $1 in
    initdb) command -v initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' ;; # Debian keeps it off the path
    *) command -v "$1" ;;
    esac
}

find_python() { # prints the first Python that is new enough; `python3 --version` may be a shim that fails
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.14; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

venv_works() { .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && [ -x .venv/bin/pip ]; }

missing_packages() {
    local python name
    if ! venv_works; then
        if ! python=$(find_python); then
            echo python3 python3-venv
        elif ! can_make_venv "$python"; then
            # Debian keeps ensurepip in a package of each Python version.
            "$python" -c 'import sys; print(f"python3.{sys.version_info.minor}-venv")'
        fi
    fi
    for name in "${commands[@]+"${commands[@]}"}"; do
        is_installed "$name" >/dev/null || package_of "$name"
    done
}

install_missing() {
    local packages
    mapfile -t packages < <(missing_packages | tr ' ' '\n' | sort -u)
    [ "${#packages[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: this machine lacks: ${packages[*]}. Install them (as root: apt-get install ${packages[*]}), then run this again." >&2
        exit 1
    fi
    echo "setup: installing ${packages[*]}"
    apt-get update -qq </dev/null
    without_starting_servers apt-get install -qq -y --no-install-recommends "${packages[@]}" </dev/null >/dev/null
}

# The tests start servers of their own; Debian's packages would make and start theirs too. What is set already stays as it is.
without_starting_servers() {
    local policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.conf made_policy=
    if [ ! -e "$clusters" ]; then
        mkdir -p "${clusters%/*}"
        echo 'create_main_cluster = false' >"$clusters"
    fi
    if [ ! -e "$policy" ]; then
        made_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    "$@" || { local code=$?; rm -f ${made_policy:+"$policy"}; return "$code"; }
    rm -f ${made_policy:+"$policy"}
}

mkdir -p .venv
exec 9>.venv/.lock
flock 9 # `make demo` and `make test` may start at once

install_missing
if ! venv_works; then
    python=$(find_python)
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

stamp=.venv/.installed-$kind
state=$(cat pyproject.toml scripts/setup.sh | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    echo "setup: installing tensorkeep ($kind)"
    # Editable: a change of the code needs no new install, only one of pyproject.toml does.
    .venv/bin/python -m pip install --quiet "${wanted[@]}" "${extra[@]+"${extra[@]}"}" </dev/null
    echo "$state" >"$stamp"
fi
