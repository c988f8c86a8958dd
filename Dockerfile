# Images for Kubernetes (docs/kubernetes.md). Build from a clean checkout:
#   docker build --build-arg ENGINE=gpu -t jouleserve:0.1.0-gpu .
#   docker build --build-arg ENGINE=cpu --build-arg MODEL=smollm2-135m-instruct -t jouleserve:0.1.0-cpu .
#   docker build --target power-agent -t jouleserve-power-agent:0.1.0 .
# BASE takes a digest as well: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11.14-slim-bookworm

# The privileged part: the standard library and one package, nothing else. Root by its manifest only.
FROM ${BASE} AS power-agent
RUN pip install --no-cache-dir nvidia-ml-py==13.615.71
WORKDIR /opt/jouleserve
COPY policies policies
COPY serve_app serve_app
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/opt/jouleserve
USER 65532:65532
ENTRYPOINT ["python", "-m", "serve_app.power_agent"]

# wget: KubeRay's readiness probe of workers. libnuma1: vLLM for CPU. gcc: kernels that Triton compiles.
# Debian keeps one version of each in a release, so there is none to pin.
FROM ${BASE} AS system
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev libnuma1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 jouleserve \
 && useradd --uid 1000 --gid 1000 --create-home jouleserve \
 && install -d -o 1000 -g 1000 /models /tmp/ray

FROM system AS build
ARG ENGINE=gpu
ARG MODEL=
# ray[llm] pins vLLM; what that leaves open is taken as it was on this day.
ARG RESOLVED_ON=2026-11-22
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
ENV JOULESERVE_CACHE=/var/cache/jouleserve
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /opt/jouleserve
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
RUN case "$ENGINE" in \
      cpu) uv pip install --torch-backend cpu --override requirements/cpu-overrides.txt \
             --constraint requirements/cpu-constraints.txt -r pyproject.toml --extra cpu ;; \
      gpu) uv pip install --exclude-newer "$RESOLVED_ON" -r pyproject.toml --extra gpu ;; \
      *) echo "ENGINE=$ENGINE: allowed: cpu, gpu" >&2; exit 2 ;; \
    esac
COPY policies policies
COPY serve_app serve_app
COPY configs configs
COPY serve_config.yaml ./
# Editable: the profiles lie beside the code (configs/profiles).
RUN uv pip install --no-deps --editable . \
 && mkdir -p "$JOULESERVE_CACHE" \
 && if [ -n "$MODEL" ]; then jouleserve model prepare "$MODEL"; fi

FROM system AS serve
COPY --from=build /usr/local /usr/local
COPY --from=build /opt/jouleserve /opt/jouleserve
COPY --from=build --chown=1000:1000 /var/cache/jouleserve /var/cache/jouleserve
# NVML is in the driver's "utility" part.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV JOULESERVE_CACHE=/var/cache/jouleserve HF_HOME=/models \
    RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
WORKDIR /home/jouleserve
USER 1000:1000
CMD ["jouleserve", "serve", "/opt/jouleserve/serve_config.yaml"]
