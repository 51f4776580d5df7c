/**
 * What rootless tests run as their user: enters a user namespace, opens a host, does what the test asks and prints one line
 * of JSON. The argument is a JSON array of steps: `{ script, range?, user? }`.
 */
import { readFileSync } from "node:fs";
import type { Refusals } from "../../runtime/index.ts";
import { enterUserNamespace, rootlessProblem } from "../../runtime/rootless.ts";

const obstacle = await enterUserNamespace({
  args: readFileSync("/proc/self/cmdline", "utf8").split("\0").slice(0, -1),
  executable: process.execPath,
  environment: process.env,
});

export interface AskedStep {
  readonly script: string;
  /** Claims a range for this step and the ones behind it with the same number. @default 0 */
  readonly range?: number;
  readonly uid?: number;
  readonly workspace?: string;
  /** In a network of its own. */
  readonly network?: {
    readonly allowed?: readonly { readonly address: string; readonly firstPort: number; readonly lastPort: number }[];
    readonly publicOnly?: boolean;
  };
  /** Runs at the same time, in a network of its own. */
  readonly beside?: string;
  readonly memoryBytes?: number;
  readonly pids?: number;
}

export interface AgentAnswer {
  readonly obstacle?: string;
  readonly problem?: string;
  readonly pid: number;
  readonly uid: number;
  readonly uidMap: string;
  /** Root's id of every range, in the agent's namespace. */
  readonly bases: readonly number[];
  readonly steps: readonly {
    readonly stdout: string;
    readonly stderr: string;
    readonly exitCode?: number;
    readonly reason?: string;
    readonly error?: string;
    readonly refused?: Refusals;
  }[];
  readonly leftovers: { readonly mounts: number; readonly containers: readonly string[] };
}

const { TestHost } = await import("./host-fixture.ts");
const { mkdirSync, readdirSync } = await import("node:fs");

const asked = JSON.parse(process.argv[2] ?? "[]") as readonly AskedStep[];
const mounts = () => readFileSync("/proc/self/mountinfo", "utf8").trim().split("\n").length;
const before = mounts();
const allow = process.env["SLIPWAY_TEST_ALLOW"] === undefined ? [] : (["no-cgroups"] as const);
const host = await TestHost.open({ allow });
const ranges = new Map([[0, host.range]]);
const steps: AgentAnswer["steps"][number][] = [];
for (const step of asked) {
  const range = ranges.get(step.range ?? 0) ?? host.host.claimUidRange();
  ranges.set(step.range ?? 0, range);
  try {
    const workspace = step.workspace === undefined ? undefined : { dir: `${host.directory}/${step.workspace}` };
    if (workspace !== undefined) {
      mkdirSync(workspace.dir, { recursive: true });
      await host.host.workspaces.give(workspace, range);
    }
    const network = step.network === undefined ? undefined : await host.host.claimNetwork();
    if (step.network?.allowed !== undefined) await network?.restrict({ destinations: step.network.allowed, names: [] });
    if (step.network?.publicOnly) await network?.keepPublic();
    const other = step.beside === undefined ? undefined : await host.host.claimNetwork();
    const beside = other && host.run(step.beside ?? "", { network: other, uidRange: range });
    const ended = await host.run(step.script, {
      uidRange: range,
      ...(workspace === undefined ? {} : { workspace }),
      ...(network === undefined ? {} : { network }),
      ...(step.uid === undefined ? {} : { user: { uid: step.uid, gid: step.uid } }),
      resources: { memoryBytes: step.memoryBytes ?? 256 << 20, cpu: 2, pids: step.pids ?? 128 },
    });
    await beside;
    other?.[Symbol.dispose]();
    const refused = network?.hasRefused() ? await network.takeRefused() : undefined;
    network?.[Symbol.dispose]();
    const { stdout, stderr, exitCode, reason } = ended;
    steps.push({
      stdout,
      stderr,
      ...(exitCode === undefined ? {} : { exitCode }),
      reason,
      ...(refused && { refused }),
    });
  } catch (error) {
    steps.push({ stdout: "", stderr: "", error: (error as Error).message });
  }
}
const bases = [...ranges.values()].map(({ base }) => base);
for (const [index, range] of ranges) if (index !== 0) range[Symbol.dispose]();
const { stateDir } = host.host;
await host.host.launchers.close();
const containers = readdirSync(`${stateDir}/containers`);
await host[Symbol.asyncDispose]();
const problem = rootlessProblem(process.env);
console.log(
  JSON.stringify({
    ...(obstacle === undefined ? {} : { obstacle: obstacle.found }),
    ...(problem === undefined ? {} : { problem }),
    pid: process.pid,
    uid: process.getuid?.() ?? -1,
    uidMap: readFileSync("/proc/self/uid_map", "utf8"),
    bases,
    steps,
    leftovers: { mounts: mounts() - before, containers },
  } satisfies AgentAnswer),
);
process.exit(0);
