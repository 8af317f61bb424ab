# bufproxy alone: a static binary, no shell, no user database. As a sidecar, or to be copied from:
#   COPY --from=bufproxy /bufproxy /usr/local/bin/bufproxy
FROM rust:1.95-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
# Alpine's target is musl, which links statically.
RUN cargo build --release --locked --bin bufproxy \
    && mkdir -p /root-of-image/tmp && chmod 1777 /root-of-image/tmp \
    && strip -o /root-of-image/bufproxy target/release/bufproxy

FROM scratch
COPY --from=build /root-of-image/ /
USER 10001:10001
EXPOSE 8080
# Only the admin listener knows whether the app answers; nobody outside the container reaches it.
ENV BUFPROXY_ADMIN=unix:/tmp/bufproxy-admin.sock
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s CMD ["/bufproxy", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/bufproxy"]
CMD ["--upstream", "unix:/run/app/app.sock"]
