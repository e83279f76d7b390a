# syntax=docker/dockerfile:1
FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked && cp target/release/millstream /usr/local/bin/millstream

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin millstream
COPY --from=build /usr/local/bin/millstream /usr/local/bin/millstream
USER millstream
# Signalling and pages; media. Behind Docker's address translation, give viewers the host's address:
#   docker run -p 8080:8080 -p 8189:8189/udp -e MILLSTREAM_WEBRTC__ANNOUNCE=203.0.113.7 millstream
EXPOSE 8080/tcp 8189/udp
# The slim image has no curl; bash can speak HTTP well enough for this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["millstream"]
CMD ["serve"]
