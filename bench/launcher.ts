/**
 * `true` in a fresh container, from start to reaped, beside crun, runc, bubblewrap, `podman run` and `docker run`.
 *
 * Everything a step gets: user, mount, pid, ipc, uts and cgroup namespaces, its job's network, seccomp, limits, an overlay
 * on idmapped layers. crun gets the same configuration, written by Slipway, on a plain root directory. One run of each in
 * turn, so that a machine whose speed drifts is unfair to nobody.
 */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { Host, prepareContainer, runContainer } from "../runtime/index.ts";
import { docker, podman } from "./engines.ts";
import { bubblewrap, type Contender, hideUnifiedHierarchy, ociRuntime } from "./peers.ts";
import { machine, milliseconds, type Summary, summarize, table } from "./stats.ts";
import { makeRootDirectory, type Place, stepOn, trueProcess } from "./subject.ts";

export async function benchLauncher(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  hideUnifiedHierarchy();
  const directory = mkdtempSync(`${tmpdir()}/slipway-bench-`);
  try {
    chmodSync(directory, 0o755); // crun walks to its bundle as the mapped root
    const rootDir = makeRootDirectory(directory);
    await using host = await Host.open({ stateDir: `${directory}/state` });
    using uidRange = host.claimUidRange();
    using network = await host.claimNetwork();
    const place = { uidRange, network };
    await using engines = new AsyncDisposableStack();
    const podmanEngine = engines.use(await podman(directory, rootDir));
    const dockerEngine = engines.use(await docker(directory, rootDir));
    const contenders = [
      slipway(host, place, rootDir),
      slipwayAhead(host, place, rootDir),
      ...ociRuntime("crun", { host, directory, rootDir, place, hasUserNamespace: true }),
      ...ociRuntime("crun", { host, directory, rootDir, place, hasUserNamespace: false }),
      ...ociRuntime("runc", { host, directory, rootDir, place, hasUserNamespace: false }),
      ...bubblewrap(rootDir),
      ...podmanEngine.contenders,
      ...dockerEngine.contenders,
    ];
    report(contenders, await measure(contenders, options.runs), options.json);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function measure(contenders: readonly Contender[], runs: number): Promise<ReadonlyMap<Contender, number[]>> {
  const times = new Map<Contender, number[]>(contenders.map((contender) => [contender, []]));
  const warmUp = 5;
  for (let run = -warmUp; run < runs; run++) {
    for (const contender of contenders) {
      if (contender.slow && run % 10 !== 0) continue;
      // What one leaves to be done after it, in the kernel or in the agent, is not to be the next one's burden.
      await delay(contender.slow ? 300 : 30);
      const ms = await contender.once();
      if (contender.slow) await delay(300);
      if (run >= 0) times.get(contender)?.push(ms);
    }
  }
  return times;
}

const full = "user, mount, pid, ipc, uts, cgroup namespaces; the job's network; seccomp; limits; overlay, idmapped";

function slipway(host: Host, place: Place, rootDir: string): Contender {
  let n = 0;
  return {
    name: "slipway",
    detail: full,
    async once() {
      const startMs = performance.now();
      const container = await runContainer(host, { ...stepOn(rootDir, `bench${n++}`, place), ...trueProcess });
      await container.result;
      const ms = performance.now() - startMs;
      await container[Symbol.asyncDispose]();
      return ms;
    },
  };
}

/** From the start of a container that was created ahead, while nothing was waiting for it. */
function slipwayAhead(host: Host, place: Place, rootDir: string): Contender {
  let n = 0;
  return {
    name: "slipway, created ahead",
    detail: "the same; from start() to reaped",
    async once() {
      const container = prepareContainer(host, stepOn(rootDir, `ahead${n++}`, place));
      await container.created;
      const startMs = performance.now();
      await container.start(trueProcess);
      await container.result;
      const ms = performance.now() - startMs;
      await container[Symbol.asyncDispose]();
      return ms;
    },
  };
}

function report(contenders: readonly Contender[], times: ReadonlyMap<Contender, number[]>, json: boolean): void {
  const own = summarize(times.get(contenders[0] as Contender) ?? []).median;
  const rows = contenders.map((contender) => {
    const summary: Summary = summarize(times.get(contender) ?? []);
    return { name: contender.name, detail: contender.detail, ...summary, slipwayToIt: own / summary.median };
  });
  if (json) {
    console.log(JSON.stringify({ benchmark: "launcher", machine: machine(), unit: "ms", results: rows }));
    return;
  }
  console.log(`\`true\` in a fresh container, start to reaped, ms. ${machine()}\n`);
  const cells = rows.map((row) => [
    row.name,
    `${row.runs}`,
    ...[row.min, row.median, row.p99, row.max].map(milliseconds),
    `${row.slipwayToIt.toFixed(row.slipwayToIt < 0.1 ? 3 : 2)} ×`,
    `  ${row.detail}`,
  ]);
  console.log(table(["", "runs", "min", "median", "p99", "max", "slipway is", "  what"], cells));
}
