# docker build -t paribus . && docker run --rm -v paribus-cache:/paribus/.dvc/cache -v paribus-state:/paribus/.paribus paribus
# With a GPU: add --gpus all; torch from PyPI brings its own CUDA libraries.
FROM python:3.11.14-slim-bookworm

# git: DVC and provenance; make: the two commands; g++: torch.compile.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 paribus \
    && install -d -o paribus -g paribus /paribus

USER paribus
WORKDIR /paribus
ENV DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true PIP_NO_CACHE_DIR=1 PATH=/paribus/.venv/bin:$PATH

# Dependencies: a layer that only a changed lock rebuilds.
COPY --chown=paribus:paribus Makefile requirements.lock ./
RUN make .venv/.requirements

COPY --chown=paribus:paribus . .
RUN make venv && mkdir -p .dvc/cache .paribus

# DVC's cache and the resumable state (with the tracking store) outlive the container.
VOLUME ["/paribus/.dvc/cache", "/paribus/.paribus"]
CMD ["make", "repro"]
