# Every machine of a cluster, its jobs and MLflow: one image a kind of machine, without a compiler, and not as root.
#
#   docker build --target cpu  --tag REGISTRY/corrdiff:0.1.0 .         heads, CPU workers, MLflow
#   docker build --target cuda --tag REGISTRY/corrdiff-cuda:0.1.0 .    GPU workers; the driver is the machine's
#
# What is installed are the versions of constraints.txt, in a layer of its own: a change of the code renews the last one.
FROM python:3.11-slim-bookworm AS base

LABEL org.opencontainers.image.title="corrdiff" \
      org.opencontainers.image.description="A diffusion-based perceptual image codec: training and compression on Ray" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# KubeRay's probes call wget. Debian's mirrors keep no older versions that could be named here.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 corrdiff

ENV VIRTUAL_ENV=/opt/corrdiff
ENV PATH=$VIRTUAL_ENV/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv "$VIRTUAL_ENV"
COPY pyproject.toml constraints.txt README.md LICENSE ./

HEALTHCHECK --interval=30s --timeout=20s --start-period=60s CMD ["ray", "health-check"]
CMD ["ray", "start", "--head", "--block", "--dashboard-host=0.0.0.0"]


FROM base AS code
COPY corrdiff corrdiff
COPY pipelines pipelines
COPY cluster cluster
RUN pip wheel --no-deps --wheel-dir dist .


# PyTorch's own index has it without CUDA: 5 GB less.
FROM base AS cpu-packages
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt '.[aws,cluster,gcp]'

FROM cpu-packages AS cpu
COPY --from=code /src/dist dist
RUN pip install --no-deps --force-reinstall dist/corrdiff-*.whl
USER 10001
WORKDIR /home/corrdiff


# PyPI's PyTorch brings its CUDA libraries along.
FROM base AS cuda-packages
RUN pip install --constraint constraints.txt '.[aws,cluster,gcp]'

FROM cuda-packages AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=code /src/dist dist
RUN pip install --no-deps --force-reinstall dist/corrdiff-*.whl
USER 10001
WORKDIR /home/corrdiff
