/** `npm run bench -- build`: a Dockerfile of ten steps, cold and all cached, beside buildah. */
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { buildImages, FileWorkers, StoreImages } from "../build/index.ts";
import { Host, ImageLease, ImageStore, RegistryClient } from "../runtime/index.ts";
import { find, hideUnifiedHierarchy } from "./peers.ts";
import { machine, summarize, type Summary, table } from "./stats.ts";

const bin = fileURLToPath(new URL("../cli/slipway.cjs", import.meta.url));
const base = "localhost/bench-base:latest";

const dockerfile = `FROM ${base}
WORKDIR /app
COPY package.json /app/
RUN mkdir -p modules && for i in $(seq 1 200); do echo "module $i" > modules/m$i.js; done
COPY src /app/src
RUN cat src/*.txt > bundle.txt && sha256sum bundle.txt > bundle.sum
RUN wc -l bundle.txt > lines.txt
ENV NODE_ENV=production
RUN mkdir -p /var/log/app && chown 1000:1000 /var/log/app && rm -r modules/m1*.js
COPY --chown=1000:1000 package.json /home/app/
RUN test -s bundle.txt && sha256sum -c bundle.sum
RUN rm -f lines.txt && touch /app/built
USER 1000
CMD ["cat", "/app/bundle.txt"]
`;

/** Milliseconds of the clock, and of processors. */
interface Measured {
  readonly ms: number;
  readonly cpuMs: number;
}

interface Builder {
  readonly name: string;
  /** An empty store but for the base image. */
  readonly reset: () => Promise<void>;
  readonly build: () => Promise<Measured>;
  readonly close: () => Promise<void>;
}

export async function benchBuild({ runs, json }: { readonly runs: number; readonly json: boolean }): Promise<void> {
  hideUnifiedHierarchy();
  const count = Math.min(runs, 10);
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-build-"));
  try {
    const layout = makeBase(directory);
    const context = makeContext(directory);
    const builders = [
      slipwayCommand(directory, { layout, context }),
      slipwayInProcess(directory, { layout, context }),
      buildah(directory, { layout, context }, []),
      buildah(directory, { layout, context }, ["--isolation", "chroot"]),
    ].filter((each) => each !== undefined);
    const cold = new Map(builders.map(({ name }) => [name, [] as Measured[]]));
    const cached = new Map(builders.map(({ name }) => [name, [] as Measured[]]));
    try {
      // By turns: whatever else the machine does, it does to all of them.
      for (let i = 0; i < count; i++) {
        for (const { name, reset, build } of builders) {
          await reset();
          cold.get(name)?.push(await build());
          // The first one after a build may have more to look at than those after it.
          await build();
          cached.get(name)?.push(await build());
        }
      }
    } finally {
      for (const builder of builders) await builder.close();
    }
    print({ cold, cached, count, json });
  } finally {
    rmSync(directory, { recursive: true, force: true, maxRetries: 5 });
  }
}

function print(measured: {
  readonly cold: ReadonlyMap<string, readonly Measured[]>;
  readonly cached: ReadonlyMap<string, readonly Measured[]>;
  readonly count: number;
  readonly json: boolean;
}): void {
  const summarizeAll = (all: ReadonlyMap<string, readonly Measured[]>): Map<string, [Summary, Summary]> =>
    new Map(
      [...all].map(([name, values]) => [
        name,
        [summarize(values.map(({ ms }) => ms)), summarize(values.map(({ cpuMs }) => cpuMs))],
      ]),
    );
  const kinds = { cold: summarizeAll(measured.cold), "all cached": summarizeAll(measured.cached) };
  if (measured.json) {
    const entries = Object.entries(kinds).map(([kind, all]) => [kind, Object.fromEntries(all)]);
    console.log(JSON.stringify({ machine: machine(), ...Object.fromEntries(entries) }));
    return;
  }
  console.log(`${machine()}\n\n${measured.count} runs by turns, milliseconds`);
  for (const [kind, all] of Object.entries(kinds)) {
    const [ours, oursCpu] = all.get("slipway image build") as [Summary, Summary];
    const rows = [...all].map(([name, [{ min, median, max }, cpu]]) => [
      name,
      ...[min, median, max].map((value) => value.toFixed(0)),
      `${(ours.median / median).toFixed(2)} ×`,
      cpu.median.toFixed(0),
      `${(oursCpu.median / cpu.median).toFixed(2)} ×`,
    ]);
    console.log(`\n${table([kind, "min", "median", "max", "slipway's part", "processor", "its part"], rows)}`);
  }
}

/** A root file system of busybox alone, as an OCI layout. */
function makeBase(directory: string): string {
  const root = join(directory, "base");
  for (const name of ["bin", "dev", "etc", "home/app", "proc", "root", "sys", "tmp", "var/log"])
    mkdirSync(join(root, name), { recursive: true });
  cpSync("/usr/bin/busybox", join(root, "bin/busybox"));
  for (const name of "sh cat chown echo mkdir rm seq sha256sum test touch wc true".split(" "))
    symlinkSync("busybox", join(root, "bin", name));
  writeFileSync(join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
  writeFileSync(join(root, "etc/group"), "root:x:0:\n");
  const tar = join(directory, "base.tar");
  execFileSync("tar", ["--create", "--file", tar, "-C", root, "--owner=0", "--group=0", "."]);
  const layout = join(directory, "layout");
  const data = ["--data-dir", join(directory, "base-data")];
  execFileSync(process.execPath, [bin, "image", "import", ...data, tar, base]);
  execFileSync(process.execPath, [bin, "image", "export", ...data, "-o", `${layout}/`, base]);
  return layout;
}

function makeContext(directory: string): string {
  const context = join(directory, "context");
  mkdirSync(join(context, "src"), { recursive: true });
  writeFileSync(join(context, "Dockerfile"), dockerfile);
  writeFileSync(join(context, "package.json"), '{"name":"bench"}\n');
  const line = "The quick brown fox jumps over the lazy dog.\n";
  for (let i = 0; i < 40; i++) writeFileSync(join(context, `src/f${i}.txt`), `${i} ${line.repeat(90)}`);
  return context;
}

interface Inputs {
  readonly layout: string;
  readonly context: string;
}

function slipwayCommand(directory: string, { layout, context }: Inputs): Builder {
  const data = join(directory, "command");
  const words = [bin, "image", "build", "--quiet", "--data-dir", data, "-t", "bench:1", context];
  return {
    name: "slipway image build",
    reset: async () => {
      rmSync(data, { recursive: true, force: true, maxRetries: 5 });
      execFileSync(process.execPath, [bin, "image", "import", "--data-dir", data, layout, base]);
      // Nobody knows whether a file has been changed again that is younger than this.
      await delay(2100);
    },
    build: () => Promise.resolve(timed(process.execPath, words)),
    close: () => Promise.resolve(),
  };
}

/** What an agent does: everything is loaded, its threads run. */
function slipwayInProcess(directory: string, { layout, context }: Inputs): Builder {
  const data = join(directory, "agent");
  let open: Awaited<ReturnType<typeof openAgent>> | undefined;
  const close = async () => {
    await open?.stack.disposeAsync();
    open = undefined;
    rmSync(data, { recursive: true, force: true, maxRetries: 5 });
  };
  return {
    name: "slipway, in an agent",
    reset: async () => {
      await close();
      const images = join(data, "images");
      execFileSync(process.execPath, [bin, "image", "import", "--data-dir", data, layout, base]);
      open = await openAgent(join(data, "state"), images);
      // Starts the threads, and a container.
      const warm = { name: "Dockerfile", content: Buffer.from(`FROM ${base}\nCOPY package.json /warm\nRUN true\n`) };
      await open.build(context, warm);
    },
    async build() {
      const [startMs, startCpu] = [performance.now(), process.cpuUsage()];
      await open?.build(context, "Dockerfile");
      const { user, system } = process.cpuUsage(startCpu);
      return { ms: performance.now() - startMs, cpuMs: (user + system) / 1000 };
    },
    close,
  };
}

async function openAgent(stateDir: string, imageStoreDir: string) {
  const stack = new AsyncDisposableStack();
  const host = stack.use(await Host.open({ stateDir, imageStoreDir }));
  const uidRange = stack.use(host.claimLayerRange());
  const network = stack.use(await host.claimNetwork());
  const store = await ImageStore.open(host.imageStoreDir);
  stack.defer(() => store.settled());
  const client = stack.use(new RegistryClient({}));
  const workers = stack.use(new FileWorkers());
  return {
    stack,
    async build(contextDir: string, file: string | { readonly name: string; readonly content: Buffer }) {
      using lease = new ImageLease();
      const images = new StoreImages({ store, client, lease, pull: "missing", keepArchives: false });
      const where = { host, uidRange, network, store, lease, workers, images };
      const resources = { memoryBytes: 2 ** 30, cpu: 2, pids: 1024 };
      await buildImages({ ...where, contextDir, dockerfile: file, names: ["localhost/agent:1"], resources });
    },
  };
}

function buildah(directory: string, { layout, context }: Inputs, options: readonly string[]): Builder | undefined {
  const path = find("buildah");
  if (path === undefined) return undefined;
  const own = join(directory, `buildah${options.join("")}`);
  const global = [`--root=${own}/root`, `--runroot=${own}/run`, "--storage-driver=overlay"];
  // It names an image by its path, which must be in lower case: a relative one.
  const call = (...args: readonly string[]) =>
    execFileSync(path, [...global, ...args], { encoding: "utf8", cwd: directory }).trim();
  const words = [...global, "bud", "--quiet", "--layers", "--pull-never", ...options, "-t", "bench:1", context];
  return {
    name: ["buildah", ...options].join(" "),
    reset: () => {
      removeStorage(own);
      mkdirSync(own);
      call("tag", call("pull", "--quiet", `oci:${basename(layout)}`), base);
      return Promise.resolve();
    },
    build: () => Promise.resolve(timed(path, words)),
    close: () => Promise.resolve(removeStorage(own)),
  };
}

function removeStorage(path: string): void {
  // The store mounts itself.
  spawnSync("umount", ["--quiet", "--recursive", join(path, "root/overlay")], { stdio: "ignore" });
  rmSync(path, { recursive: true, force: true, maxRetries: 5 });
}

/** A whole command; the processors' time is that of all its processes that have ended, to ten milliseconds. */
function timed(path: string, args: readonly string[]): Measured {
  const before = childrenMs();
  const startMs = performance.now();
  const result = spawnSync(path, args, { encoding: "utf8", stdio: ["ignore", "ignore", "pipe"] });
  const ms = performance.now() - startMs;
  if (result.status !== 0) throw new Error(`Cannot measure ${path}: ${result.stderr}`);
  return { ms, cpuMs: childrenMs() - before };
}

/** cutime and cstime of proc(5), in ticks of which a second has 100. */
function childrenMs(): number {
  const stat = readFileSync("/proc/self/stat", "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[13]) + Number(fields[14])) * 10;
}
