# The server and the command line in one image, without a model.
#
#     docker build -t qbridge .
#     docker run -p 8080:8080 -v /srv/bundles/demo:/bundle:ro -e QBRIDGE_API_KEYS=secret qbridge
#
# Runs on any x86-64 machine with AVX2, or on 64-bit ARM.

FROM rust:1.94-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends clang cmake libclang-dev nasm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build \
    CARGO_TARGET_DIR=/build cargo build --release --locked --package qbridge-cli \
    && install -D /build/release/qbridge /out/qbridge

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home qbridge
COPY --from=build /out/qbridge /usr/local/bin/qbridge
USER 10001
# Everyone who reaches the container reaches the server: it starts only with keys, or with --no-auth.
ENV QBRIDGE_HOST=0.0.0.0 QBRIDGE_PORT=8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8080/health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["qbridge"]
CMD ["serve", "/bundle"]
