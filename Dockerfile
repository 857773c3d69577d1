# ocr2 on a CPU, the bundled model inside.
#
#   docker build -t ocr2 .
#   docker run --rm -v "$PWD/docs:/in:ro" -v "$PWD/text:/out" ocr2 run /in -o /out
#
#   docker build --target serve -t ocr2-serve .
#   docker run --rm -p 127.0.0.1:8080:8080 -e OCR2_API_KEY=... ocr2-serve
#
# The package index's torch for x86-64 brings CUDA along, some GB of it. For an image without, give
# the index of PyTorch's CPU builds: --build-arg TORCH_INDEX=URL (its install page names it).
# The folder mounted at /out must be writable for the user 1000, or run with --user "$(id -u)".

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY ocr2cli ocr2cli
COPY models models
COPY eval eval
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS base
ARG TORCH_INDEX=
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY --from=build /wheels /tmp/wheels
RUN wheel=$(echo /tmp/wheels/*.whl) \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt "${wheel}[serve,openai,heic]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && useradd --uid 1000 --create-home ocr2 \
    && install -d -o ocr2 /in /out /models
# Models that are not bundled are kept in the volume, and code that was compiled for this processor.
ENV HF_HOME=/models XDG_CACHE_HOME=/models/cache PYTHONUNBUFFERED=1
VOLUME ["/in", "/out", "/models"]
WORKDIR /out
USER 1000
ENTRYPOINT ["ocr2"]

# Any address but loopback needs a key: without OCR2_API_KEY the container says so and ends.
FROM base AS serve
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]

FROM base AS run
CMD ["--help"]
