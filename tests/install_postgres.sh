#!/bin/sh
# The store is tested on a real PostgreSQL; tests/postgres.py starts one of its own. Does nothing where its
# programs are there. On Debian and Ubuntu, as root, installs them without the server that the package would
# start. Where that fails, the tests say what they need.
set -eu

for folder in $(echo "$PATH" | tr ':' ' ') /usr/lib/postgresql/*/bin; do
    [ ! -x "$folder/postgres" ] || [ ! -x "$folder/initdb" ] || exit 0
done

install_debian() {
    export DEBIAN_FRONTEND=noninteractive
    get="apt-get install -y --no-install-recommends"
    settings=/etc/postgresql-common/createcluster.conf
    $get postgresql-common || { apt-get update && $get postgresql-common; } || return
    grep -q '^create_main_cluster' "$settings" || echo 'create_main_cluster = false' >>"$settings" || return
    $get postgresql
}

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && install_debian; then
    exit 0
fi
echo "PostgreSQL is missing and could not be installed: install it, or the tests of the store fail." >&2
