/**
 * Debian's own container tools in a nested step, as they are. Half a gigabyte of packages, so only on request:
 *
 *   mmdebstrap --variant=minbase --include=buildah,podman,docker.io,bubblewrap,mmdebstrap,uidmap,iptables,iproute2,\
 *     fuse-overlayfs,slirp4netns,busybox-static,ca-certificates,containernetworking-plugins,procps,crun,rootlesskit \
 *     bookworm /tmp/tools
 *   SLIPWAY_TEST_NESTED_ROOTFS=/tmp/tools npm test -- test/runtime/nested-tools.test.ts
 *
 * BuildKit by itself is no package of Debian's; its test runs where its programs are (by a current Go):
 *
 *   go mod download github.com/moby/buildkit@v0.34.2 && cd "$(go env GOMODCACHE)/github.com/moby/buildkit@v0.34.2"
 *   CGO_ENABLED=0 go build -o /tmp/tools/usr/local/bin/ ./cmd/buildkitd ./cmd/buildctl
 *
 * The image that they build and run is one program, busybox: no registry is asked. mmdebstrap asks the mirror of the root's own
 * sources.list.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ContainerNetwork, Image, UidRange } from "../../runtime/index.ts";
import { type Ended, TestHost } from "./host-fixture.ts";

const rootDir = process.env["SLIPWAY_TEST_NESTED_ROOTFS"] ?? "";
const user = { uid: 1000, gid: 1000 };
const has = (program: string) => existsSync(join(rootDir, program));

describe.skipIf(rootDir === "")("in a nested step", () => {
  let host: TestHost;
  let image: Image;
  beforeAll(async () => {
    host = await TestHost.open();
    const layer = host.workspace();
    mkdirSync(join(layer, "etc"));
    const passwd = readFileSync(join(rootDir, "etc/passwd"), "utf8");
    const hasUser = /^[^:]*:[^:]*:1000:/m.test(passwd);
    const more = hasUser ? "" : "user:x:1000:1000::/home/user:/bin/sh\n";
    writeFileSync(join(layer, "etc/passwd"), `${passwd}${more}`);
    image = { reference: rootDir, layers: [rootDir, layer], binds: [], config: { env: {} } };
  });
  afterAll(async () => host[Symbol.asyncDispose]());

  /** A script beside a Dockerfile. */
  function run(
    script: string,
    options: {
      readonly asUser?: boolean;
      readonly stores?: string;
      readonly range?: UidRange;
      readonly network?: ContainerNetwork;
    } = {},
  ): Promise<Ended> {
    const home = options.asUser === true ? "/tmp/home" : "/root";
    const prologue = `
      exec 2>&1; mkdir -p /tmp/build ${home}; cd /tmp/build; cp /bin/busybox .
      cat > Dockerfile <<'END'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox mkdir /made && /bin/busybox --install -s /bin"]
RUN id -u > /made/by
END
`;
    return host.run(`set +e\n${prologue}\n${script}`, {
      image,
      nested: { home, ...(options.stores !== undefined && { stores: options.stores }) },
      env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: home },
      resources: { memoryBytes: 2 * 2 ** 30, cpu: 2, pids: 2000 },
      ...(options.asUser === true && { user }),
      ...(options.range !== undefined && { uidRange: options.range }),
      ...(options.network !== undefined && { network: options.network }),
    });
  }
  const limit = { timeout: 240_000 };
  /** What BuildKit asks of a user's session, and its own rootless image sets. */
  const asBuildKitsUser =
    "export USER=user XDG_RUNTIME_DIR=$HOME/run BUILDKIT_HOST=unix://$HOME/run/buildkit/buildkitd.sock; mkdir -m 700 $HOME/run";

  test.for(["chroot", "oci", "rootless"])("buildah bud and run, isolation %s", limit, async (isolation) => {
    const { stdout } = await run(`
        buildah bud --isolation ${isolation} -t made . > log 2>&1 || cat log
        container=$(buildah from localhost/made) && buildah run --isolation ${isolation} $container -- cat /made/by`);
    expect(stdout).toBe("0\n");
  });

  test.for([{ asUser: false }, { asUser: true }])(
    "podman build and run with a network, as a user: $asUser",
    limit,
    async ({ asUser }) => {
      const { stdout } = await run(
        `podman build -t made . > log 2>&1 || cat log
        podman run --rm localhost/made sh -c 'cat /made/by; ip -o address | grep -c "scope global"' 2> log || cat log
        podman run --rm --privileged localhost/made sh -c 'mount -t tmpfs none /made && echo mounted'`,
        { asUser },
      );
      expect(stdout).toMatch(/^0\n[1-9]\nmounted\n$/);
    },
  );

  test("buildah as a user", limit, async () => {
    const { stdout } = await run(
      `buildah bud -t made . > log 2>&1 || cat log
        container=$(buildah from localhost/made) && buildah run $container -- cat /made/by`,
      { asUser: true },
    );
    expect(stdout).toBe("0\n");
  });

  test("dockerd, docker build and docker run, with a bridge, limits and --privileged", limit, async () => {
    const { stdout } = await run(`
        dockerd > daemon 2>&1 &
        for i in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.1; done
        docker build -t made . > log 2>&1 || cat log daemon
        docker run --rm made sh -c 'cat /made/by; ip -o address | grep -c 172.17'
        docker run --rm -m 64m --pids-limit 50 made echo limited
        docker run --rm --privileged made sh -c 'mount -t tmpfs none /made && echo mounted'`);
    expect(stdout).toBe("0\n1\nlimited\nmounted\n");
  });

  test("BuildKit, the one in dockerd", limit, async () => {
    const { stdout } = await run(`
        dockerd > daemon 2>&1 &
        for i in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.1; done
        sed -i 's/^RUN id/RUN --mount=type=cache,target=\\/cache id/' Dockerfile
        DOCKER_BUILDKIT=1 docker build --progress plain -t made . > log 2>&1 || cat log daemon
        grep -c '^#.* RUN --mount=type=cache' log; docker run --rm made cat /made/by`);
    expect(stdout).toMatch(/^[1-9]\n0\n$/);
  });

  test.for([
    { asUser: false, daemon: "buildkitd", needs: "usr/local/bin/buildkitd" },
    { asUser: true, daemon: "rootlesskit buildkitd", needs: "usr/bin/rootlesskit" },
  ])("BuildKit by itself, as a user: $asUser", limit, async ({ asUser, daemon, needs }, context) => {
    if (!has("usr/local/bin/buildkitd") || !has(needs)) context.skip(`there is no ${needs} in ${rootDir}`);
    using network = await host.host.claimNetwork({ owner: host.range });
    const script = `
        ${asUser ? asBuildKitsUser : ""}
        ${daemon} > daemon 2>&1 &
        for i in $(seq 300); do buildctl debug workers > /dev/null 2>&1 && break; sleep 0.1; done
        cat >> Dockerfile <<'END'
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t ip -o address | grep -c 'scope global'
END
        buildctl build --frontend dockerfile.v0 --local context=. --local dockerfile=. --progress plain \
          --output type=docker,name=made,dest=made.tar > log 2>&1 || cat log daemon
        sed -n 's/^#[0-9]* [0-9.]* //p' log; tar --list --file made.tar | grep -c manifest.json
        buildctl build --frontend dockerfile.v0 --local context=. --local dockerfile=. --output type=local,dest=made \
          > log 2>&1 || cat log
        cat made/made/by`;
    // Its commands use the step's network; with rootlesskit alone, too.
    const { stdout } = await run(script, { asUser, network: network.view({ services: [] }) });
    expect(stdout).toMatch(/^[1-9]\n1\n0\n$/);
  });

  test.for([
    { asUser: false, mode: "root" },
    { asUser: false, mode: "unshare" },
    { asUser: true, mode: "unshare" },
  ])("mmdebstrap in mode $mode, as a user: $asUser", { timeout: 600_000 }, async ({ asUser, mode }) => {
    using network = await host.host.claimNetwork({ owner: host.range });
    const script = `
        mmdebstrap --mode=${mode} --variant=essential bookworm made.tar < /etc/apt/sources.list > log 2>&1 || cat log
        tar --list --file made.tar | grep -c -x -e ./usr/bin/dpkg -e ./etc/passwd`;
    const { stdout } = await run(script, { asUser, network: network.view({ services: [] }) });
    expect(stdout).toBe("2\n");
  });

  test("each finds again, as it is, what it has kept between builds, whatever the ids", limit, async () => {
    const key = { namespace: "test", name: "images" };
    const copy = async (name: string) => {
      const stores = join(host.host.keptDir, name);
      mkdirSync(stores);
      await host.host.containerCaches.copy(key, stores);
      return stores;
    };
    const docker = `
        dockerd > daemon 2>&1 &
        for i in $(seq 300); do docker version > /dev/null 2>&1 && break; sleep 0.1; done`;
    const first = await copy("first");
    const made = await run(
      `podman build -t made . > log 2>&1 || cat log; buildah bud -t other . > log 2>&1 || cat log
        ${docker}
        docker build -t made . > log 2>&1 || cat log daemon; docker run --name left made true; echo done`,
      { stores: first },
    );
    expect(made.stdout).toBe("done\n");
    expect(await host.host.containerCaches.keep(key, first)).toMatchObject({ outcome: "kept" });
    const second = await copy("second");
    using range = host.host.claimUidRange();
    const again = `rm -f busybox Dockerfile
        podman run --rm --network none localhost/made cat /made/by; buildah images -q localhost/other | grep -c .
        ${docker}
        docker run --rm made cat /made/by; docker ps -aq | grep -c .; docker rm left`;
    const { stdout } = await run(again, { stores: second, range });
    expect(stdout).toBe("0\n1\n0\n1\nleft\n");
  });

  test.for([{ asUser: false }, { asUser: true }])(
    "bwrap and unshare, as a user: $asUser",
    limit,
    async ({ asUser }) => {
      const { stdout } = await run(
        `bwrap --ro-bind / / --dev /dev --proc /proc --unshare-all true && echo bwrap
        unshare --user --map-root-user --pid --fork --mount --net --mount-proc true && echo unshare`,
        { asUser },
      );
      expect(stdout).toBe("bwrap\nunshare\n");
    },
  );
});
