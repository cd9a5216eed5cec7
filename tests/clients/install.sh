#!/bin/sh
# Makes .venv-clients/openai3 and .venv-clients/openai2 from their locks: the clients under test, never beside
# vLLM in .venv. Safe to run again: it does nothing where an environment already matches its lock.
set -eu
cd "$(dirname "$0")/../.."

for set in openai3 openai2; do
    lock=locks/clients-$set.txt
    home=.venv-clients/$set
    want=$(sha256sum "$lock" tests/clients/install.sh | sha256sum | cut -d' ' -f1)
    [ "$(cat "$home/sprat.lock" 2>/dev/null || true)" != "$want" ] || continue
    rm -rf "$home"
    .venv/bin/python -m venv "$home"
    pip="$home/bin/python -m pip --disable-pip-version-check --quiet"
    echo "sprat clients: installing $lock into $home"
    # Wheels are looked at before anything of them can run: a .pth file runs code at every start of Python,
    # which is how backdoored releases of such clients came (THREATS: supply chain).
    $pip download --only-binary :all: --no-deps --dest "$home/wheels" -r "$lock"
    for wheel in "$home"/wheels/*.whl; do
        if .venv/bin/python -m zipfile --list "$wheel" | grep -E '\.pth\b'; then
            echo "sprat clients: $wheel brings the .pth file above; look at it before installing it" >&2
            exit 1
        fi
    done
    $pip install --no-deps --no-index "$home"/wheels/*.whl
    rm -r "$home/wheels"
    echo "$want" >"$home/sprat.lock"
done
