/**
 * Containers per second, 8 at a time: one agent that runs `true` in full containers of 8 jobs, each with its own uid range
 * and network, beside crun started 8 at a time on the same configurations.
 *
 * Rounds of both in turn. A container counts when it is reaped and removed, so that nothing is left to be done later.
 */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { Host, runContainer } from "../runtime/index.ts";
import { type Contender, hideUnifiedHierarchy, ociRuntime } from "./peers.ts";
import { machine, summarize, table } from "./stats.ts";
import { makeRootDirectory, type Place, stepOn, trueProcess } from "./subject.ts";

const atATime = 8;
const perRound = 80;

export async function benchThroughput(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  hideUnifiedHierarchy();
  const rounds = Math.min(options.runs, 10);
  const directory = mkdtempSync(`${tmpdir()}/slipway-bench-`);
  try {
    chmodSync(directory, 0o755); // crun walks to its bundle as the mapped root
    const rootDir = makeRootDirectory(directory);
    await using host = await Host.open({ stateDir: `${directory}/state` });
    using stack = new DisposableStack();
    const places: Place[] = [];
    for (let i = 0; i < atATime; i++) {
      places.push({ uidRange: stack.use(host.claimUidRange()), network: stack.use(await host.claimNetwork()) });
    }
    const each = (contenders: readonly (Contender | undefined)[]) =>
      contenders.filter((contender) => contender !== undefined);
    const ours = places.map((place, i) => slipway(host, place, { rootDir, job: i }));
    const theirs = (name: "crun" | "runc", hasUserNamespace: boolean) =>
      each(places.map((place) => ociRuntime(name, { host, directory, rootDir, place, hasUserNamespace })[0]));
    const contenders = [
      { name: "slipway", lanes: ours },
      { name: "crun", lanes: theirs("crun", true) },
      { name: "crun, no user namespace", lanes: theirs("crun", false) },
      { name: "runc, no user namespace", lanes: theirs("runc", false) },
    ].filter(({ lanes }) => lanes.length > 0);
    const rates = new Map<string, number[]>(contenders.map(({ name }) => [name, []]));
    const warmUp = 1;
    for (let round = -warmUp; round < rounds; round++) {
      for (const { name, lanes } of contenders) {
        await delay(200);
        const rate = await containersPerSecond(lanes);
        if (round >= 0) rates.get(name)?.push(rate);
      }
    }
    report(rates, options.json);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Each lane starts its next container when its last one has ended. */
async function containersPerSecond(lanes: readonly Contender[]): Promise<number> {
  let left = perRound;
  const startMs = performance.now();
  await Promise.all(
    lanes.map(async (lane) => {
      while (left-- > 0) await lane.once();
    }),
  );
  return (perRound * 1000) / (performance.now() - startMs);
}

function slipway(
  host: Host,
  place: Place,
  { rootDir, job }: { readonly rootDir: string; readonly job: number },
): Contender {
  let n = 0;
  return {
    name: "slipway",
    detail: "",
    async once() {
      const startMs = performance.now();
      const step = stepOn(rootDir, `job${job}-${n++}`, place);
      const container = await runContainer(host, { ...step, ...trueProcess });
      const { exitCode, message } = await container.result;
      await container[Symbol.asyncDispose]();
      if (exitCode !== 0) throw new Error(`Cannot measure slipway: ${message}`);
      return performance.now() - startMs;
    },
  };
}

function report(rates: ReadonlyMap<string, readonly number[]>, json: boolean): void {
  const summaries = [...rates].map(([name, values]) => ({ name, ...summarize(values) }));
  const own = summaries[0]?.median ?? Number.NaN;
  const rows = summaries.map((row) => ({ ...row, slipwayToIt: own / row.median }));
  if (json) {
    console.log(
      JSON.stringify({ benchmark: "throughput", machine: machine(), unit: "containers/s", atATime, results: rows }),
    );
    return;
  }
  console.log(`\`true\` in full containers, ${atATime} at a time, containers per second. ${machine()}\n`);
  const cells = rows.map(({ name, runs, min, median, max, slipwayToIt }) => [
    name,
    `${runs}`,
    ...[min, median, max].map((value) => value.toFixed(1)),
    `${slipwayToIt.toFixed(2)} ×`,
  ]);
  console.log(table(["", `rounds of ${perRound}`, "min", "median", "max", "slipway is"], cells));
}
