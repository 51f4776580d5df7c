# Server and agent in one image. Both stages are pinned; npm ci installs exactly what package-lock.json names, Node included,
# and no package needs its install script: native code comes prebuilt.
FROM node:24.9.0-bookworm-slim AS packages
WORKDIR /opt/slipway
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund && npm cache clean --force

FROM debian:12.11-slim
# The bundled Node needs libatomic1; Git fetches and checks out commits. Steps with the image `host` see this image's /usr: add what they need here, or name an
# image in the pipeline.
RUN apt-get update \
  && apt-get install --yes --no-install-recommends ca-certificates git libatomic1 openssh-client \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --system --home-dir /var/lib/slipway --create-home --shell /usr/sbin/nologin slipway \
  && install --directory --owner slipway --group slipway --mode 0700 /run/slipway-token
WORKDIR /opt/slipway
COPY --from=packages /opt/slipway/node_modules node_modules
COPY package.json ./
COPY agent agent
COPY cli cli
COPY pipelines pipelines
COPY queue queue
COPY runtime runtime
COPY server server
COPY web web
RUN ln -s /opt/slipway/node_modules/.bin/node /usr/local/bin/node && ln -s /opt/slipway/cli/slipway.cjs /usr/local/bin/slipway
ENV SLIPWAY_DATA_DIR=/var/lib/slipway
USER slipway
ENTRYPOINT ["slipway"]
CMD ["--help"]
