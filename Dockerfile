# docker build -t paribus . && docker run --rm -v paribus-state:/paribus/.paribus -v paribus-cache:/paribus/.dvc/cache paribus
# With a GPU: add --gpus all; torch from PyPI brings its own CUDA libraries. More: docs/docker.md
FROM python:3.11.14-slim-bookworm

# git: DVC and provenance; make: the two commands; g++: torch.compile.
# Their versions are those of this base image's Debian release: pinning them too would break the build at each point release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 paribus \
    && install -d -o paribus -g paribus /paribus

USER 1000
WORKDIR /paribus
ENV DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true PIP_NO_CACHE_DIR=1 PATH=/paribus/.venv/bin:$PATH

# Dependencies: a layer that only a changed lock rebuilds.
COPY --chown=paribus:paribus Makefile requirements.lock ./
RUN make .venv/.requirements

COPY --chown=paribus:paribus . .
RUN make venv && mkdir -p .dvc/cache .paribus mlartifacts

# What outlives the container. .paribus: fetched datasets, resumable state, the MLflow database, compiled kernels;
# .dvc/cache: every version of every output, and which command made it; mlartifacts: the files of MLflow's runs.
ENV MLFLOW_TRACKING_URI=sqlite:////paribus/.paribus/mlflow.db \
    HF_HOME=/paribus/.paribus/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/paribus/.paribus/compiled
VOLUME ["/paribus/.paribus", "/paribus/.dvc/cache", "/paribus/mlartifacts"]
CMD ["make", "repro"]
