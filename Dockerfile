# The server image: NVIDIA's Triton and this package, no models and no index (both are mounted).
#   docker build --build-arg VARIANT=gpu --tag tritonrag:0.1.0-gpu .
# A release must carry a Python that pyproject.toml allows (3.12 since 24.12; the build stops where it
# does not) and CUDA 13, which the GPU packages are built for (26.10: 13.4).
ARG TRITON_RELEASE=26.10
FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS build

# cpu or gpu: which FAISS and ONNX Runtime the Python models import.
ARG VARIANT=cpu

WORKDIR /build
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY deploy/container/requirements-gpu.txt deploy/container/
COPY src/ src/

# A virtual environment, so that the next stage takes one folder and neither pip's cache nor sources.
# It is made without pip because Ubuntu keeps ensurepip in a package of its own.
# For the GPU no dependency is resolved: the lock has GPU packages in place of what the package asks
# for, under the same module names.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/tritonrag \
    && pip="python3 -m pip --python /opt/tritonrag/bin/python3 --disable-pip-version-check" \
    && case "${VARIANT}" in \
        cpu) ${pip} install --constraint constraints.txt ".[milvus,sources]" ;; \
        gpu) ${pip} install --no-deps --requirement deploy/container/requirements-gpu.txt . ;; \
        *) echo "VARIANT is ${VARIANT}, expected cpu or gpu" >&2; exit 1 ;; \
    esac

FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3

COPY --from=build /opt/tritonrag /opt/tritonrag

# Triton's Python backend takes the site-packages of the first python3 on PATH.
# CUDA compiles kernels on first use and keeps them; the home folder is read-only.
ENV PATH=/opt/tritonrag/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    CUDA_CACHE_PATH=/tmp/cuda \
    TRITONRAG_REPOSITORY=/models \
    TRITONRAG_INDEX_DIR=/index \
    TRITONRAG_URL=127.0.0.1:8001 \
    TRITONRAG_WATCHDOG=127.0.0.1:8003

# A named volume takes over the owner of the folder it is first mounted on.
RUN install --directory --owner=1000 --group=1000 /index
# The user triton-server of the base image, as a number so that Kubernetes can see it is not root.
USER 1000:1000
WORKDIR /tmp

EXPOSE 8000 8001 8002 8003

# A model's process can die while /v2/health/ready still says 200: ask a real question.
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["tritonrag", "status", "--probe"]

# The watchdog replaces a model or a server that died: a restart policy acts on neither an unhealthy
# container nor a model's process. It opens Triton's closed APIs with TRITONRAG_ADMIN_KEY alone.
# On SIGTERM answers that are being streamed have 30 s to end; docker-compose.yml waits longer.
# configs/live.pbtxt beside a config.pbtxt names the versions in use (`tritonrag models`).
CMD ["tritonrag", "supervise", "--watchdog-address=0.0.0.0", "--", \
    "tritonserver", "--model-repository=/models", "--exit-timeout-secs=30", \
    "--model-control-mode=explicit", "--model-config-name=live", \
    "--load-model=tokenize", "--load-model=embed", "--load-model=retrieve", \
    "--load-model=prompt", "--load-model=generate", \
    "--load-model=embed_text", "--load-model=search", "--load-model=rag"]
