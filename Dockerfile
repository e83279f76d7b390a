# syntax=docker/dockerfile:1
FROM rust:1-bookworm AS build
# GStreamer for the worker to link with; npm for the part of the player that comes from there.
RUN apt-get update && apt-get install -y --no-install-recommends \
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev pkg-config npm && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/millstream target/release/millstream-worker /usr/local/bin/

FROM debian:bookworm-slim
# GStreamer and its plugins for pipelines and transcoding, and a font for the test picture.
RUN apt-get update && apt-get install -y --no-install-recommends \
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly \
    gstreamer1.0-libav gstreamer1.0-x glib-networking fonts-dejavu-core && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin millstream
COPY --from=build /usr/local/bin/millstream /usr/local/bin/millstream-worker /usr/local/bin/
# What is installed is looked at once, here: otherwise each start of a container would pay for it.
ENV GST_REGISTRY=/var/cache/gstreamer/registry.bin
RUN mkdir -p /var/cache/gstreamer && millstream check && chmod -R a+rX /var/cache/gstreamer
# What is set through the API is kept here: mount a volume to keep it longer than the container.
ENV STATE_DIRECTORY=/var/lib/millstream
RUN mkdir -p /var/lib/millstream && chown millstream /var/lib/millstream
USER millstream
# Signalling and pages; media. Behind Docker's address translation, give viewers the host's address:
#   docker run -p 8080:8080 -p 8189:8189/udp -p 8189:8189/tcp -e MILLSTREAM_WEBRTC__ANNOUNCE=203.0.113.7 millstream
EXPOSE 8080/tcp 8189/udp 8189/tcp
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["millstream", "health"]
ENTRYPOINT ["millstream"]
CMD ["serve"]
