#!/bin/sh
# Writes locks/*.txt from pyproject.toml: every package pinned, with hashes. Run by `make lock`.
set -eu
cd "$(dirname "$0")"
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool/venv" && "$tool/venv/bin/pip" install --quiet uv==0.13.9

# Asked for by vllm, not needed for text, and harmful beside a CPU torch: never installed (setup.sh checks).
printf '%s\n' 'torchvision; sys_platform == "never"' 'torchaudio; sys_platform == "never"' \
    'torchcodec; sys_platform == "never"' >"$tool/cuda-override.txt"
# The CPU wheels of torch are on PyTorch's own index, other bytes per index: pinned apart, without hash.
# Its requirements stay in the lock.
cp "$tool/cuda-override.txt" "$tool/cpu-override.txt"
printf '%s\n' 'torch; sys_platform == "never"' >>"$tool/cpu-override.txt"
printf '%s\n' filelock typing-extensions sympy networkx jinja2 fsspec >"$tool/cpu.in"
: >"$tool/cuda.in"

for wheels in cpu cuda; do
    "$tool/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --extra "$wheels" --extra loadtest --extra dev --override "$tool/$wheels-override.txt" \
        pyproject.toml "$tool/$wheels.in" -o "locks/$wheels.txt"
done
echo 'torch==2.13.0+cpu' >locks/cpu-torch.txt

# Clients of others for tests/clients, in environments of their own: their pins clash with vLLM's and with
# each other's.
for set in openai3 openai2; do
    "$tool/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header \
        "tests/clients/$set.in" -o "locks/clients-$set.txt"
done
