# Baton as an image: `baton` is the entry point, `serve` what it does unless told otherwise.
#
# It runs as user 10001, with a read-only root, without capabilities and without a shell, and writes nothing. A
# replica that listens beyond loopback wants BATON_AUTH said by whoever runs it, keys or open, or a BATON_ADMIN_KEY; it wants
# BATON_REDIS_URL and BATON_SECRET too. What is missing is told, and the exit code is 78.
#
# No `# syntax` line: the frontend that is built into the engine does, and nothing but the base image and the locked
# wheels is fetched.

FROM python:3.13-slim AS build
WORKDIR /src
# Two layers: the wheels change seldom. pip stays in this stage, and so does what builds Baton itself.
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python -m venv --without-pip /opt/baton && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: \
       -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/baton/bin/python install --no-cache-dir --disable-pip-version-check \
       --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY storage storage
COPY service service
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-build-isolation --no-deps --no-index \
       --wheel-dir /tmp/wheels . \
    && /opt/build/bin/pip --python /opt/baton/bin/python install --no-cache-dir --disable-pip-version-check \
       --no-deps --no-index /tmp/wheels/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.description="Keeps conversations with Claude in Redis, so that any replica can carry them on." \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH
# The base image comes without compiled modules, and nobody can write them later: compile what a replica, the simulator
# and the health check load, or each start and each check would.
RUN ["python", "-c", "import http.client, service.cli, service.server, service.check, service.simulator.app"]
# An empty BATON_REDIS_URL is refused: the private Valkey that is the default elsewhere would be lost with the container.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BATON_LISTEN=0.0.0.0:8000 \
    BATON_REDIS_URL=
USER 10001:10001
EXPOSE 8000
# Liveness, and not readiness: who acts on this restarts the container, which mends no store. http.client asks no proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["baton"]
CMD ["serve"]
