# The image of a node: head, gateways and replicas.
#
#   docker build -t sprat:cpu .                                nodes without cards
#   docker build -t sprat:cuda --build-arg WHEELS=cuda .       nodes with NVIDIA cards
#
# The CUDA wheels bring CUDA's libraries along; the host needs the driver and NVIDIA's container toolkit only.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ARG WHEELS=cpu
WORKDIR /opt/sprat
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY locks/cpu-torch.txt locks/cpu.txt locks/cuda.txt locks/
# As setup.sh does: the locks are complete, so no dependency is looked for.
RUN if [ "$WHEELS" = cpu ]; then \
        pip install --no-deps --index-url https://download.pytorch.org/whl/cpu -r locks/cpu-torch.txt; \
    fi && \
    pip install --no-deps --require-hashes -r "locks/$WHEELS.txt"
COPY pyproject.toml README.md ./
COPY cluster cluster
COPY deployments deployments
COPY kernels kernels
COPY loadtest loadtest
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}
# g++: Triton and vLLM's CPU backend compile small programs when they start. libnuma1: vLLM's CPU backend.
RUN apt-get update && \
    apt-get install --no-install-recommends --yes g++ libnuma1 && \
    rm -rf /var/lib/apt/lists/*
# Volumes mounted here belong to the user without a step of their own.
RUN useradd --uid 1000 --create-home sprat && \
    install -d -o sprat -g sprat -m 700 /home/sprat/state /home/sprat/.cache /home/sprat/.cache/sprat
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    SPRAT_STATE=/home/sprat/state \
    SPRAT_CACHE=/home/sprat/.cache/sprat \
    RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/sprat
# No ENTRYPOINT: KubeRay and Ray's launcher start a shell of theirs in this image.
CMD ["sprat", "--help"]
