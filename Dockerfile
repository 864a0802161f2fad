# objstore in a container: docker run -p 9000:9000 -v objstore:/data objstore
# The root key is printed by the first start; OBJSTORE_ROOT_ACCESS_KEY and OBJSTORE_ROOT_SECRET_KEY (or _FILE) set it.

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY requirements/run.txt requirements/run.txt
RUN python -m venv /opt/objstore \
 && /opt/objstore/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt
COPY objstore /opt/objstore/app/objstore
COPY cmd /opt/objstore/app/cmd
COPY config /opt/objstore/app/config
COPY LICENSE README.md /opt/objstore/app/
RUN /opt/objstore/bin/python -m compileall -q /opt/objstore/app/objstore \
 && ln -s /opt/objstore/app/cmd/objstore /opt/objstore/bin/objstore \
 && sed -i '1s|.*|#!/opt/objstore/bin/python|' /opt/objstore/app/cmd/*

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="objstore" \
      org.opencontainers.image.description="An S3-compatible, erasure-coded object store" \
      org.opencontainers.image.licenses="Apache-2.0"
# tini hands signals on and reaps; libisal2 computes the erasure code 20 to 40 times faster; invoices are printed in
# DejaVu Sans, and their numbers and dates follow the seller's time zone, which tzdata knows. The image of Python comes without bytecode, and the store's user may not write any: every start and
# health check would compile it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini libisal2 fonts-dejavu-core tzdata \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 objstore \
 && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin objstore \
 && install -d -o 10001 -g 10001 -m 0700 /data \
 && python -m compileall -q -x '/(test|tests|lib2to3|site-packages)/' /usr/local/lib/python3.11
COPY --from=build /opt/objstore /opt/objstore
ENV PATH=/opt/objstore/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OBJSTORE_SERVER__DATA=/data \
    OBJSTORE_SERVER__LISTEN=0.0.0.0:9000 \
    OBJSTORE_SERVER__ADMIN_LISTEN=127.0.0.1:9001
USER 10001:10001
VOLUME /data
EXPOSE 9000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["objstore", "health", "--ready"]
ENTRYPOINT ["tini", "--", "objstore"]
CMD ["serve"]
