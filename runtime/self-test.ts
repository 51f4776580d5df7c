/** The last word on whether a host can do it: a whole container, started and reaped. */
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { adoptTree } from "./file-owners.ts";
import type { HostCheck } from "./check.ts";
import { runContainer } from "./create-container.ts";
import type { Host } from "./host.ts";
import { compileProgram } from "./program.ts";
import { architecture } from "./syscall.ts";

/** Starts a container whose image is one program that ends at once; takes a few milliseconds. */
export async function testHost(host: Host): Promise<HostCheck> {
  const check = { name: "a whole container", required: true };
  const layer = `${host.stateDir}/self-test`;
  using range = host.claimUidRange();
  try {
    mkdirSync(layer, { recursive: true, mode: 0o755 });
    const { file } = compileProgram([{ name: "end", call: "exit_group", args: [42] }], { architecture, statusFd: 2 });
    writeFileSync(`${layer}/end`, file);
    chmodSync(`${layer}/end`, 0o755);
    adoptTree(layer);
    const startMs = performance.now();
    await using container = await runContainer(host, {
      id: "self-test",
      image: { reference: "self-test", layers: [layer], binds: [], config: { env: {} } },
      uidRange: range,
      args: ["/end"],
      env: {},
      resources: { memoryBytes: 64 << 20, cpu: 1, pids: 16 },
      network: "none",
      output: () => undefined,
      timeoutMs: 30_000,
      graceMs: 0,
    });
    const { exitCode, message } = await container.result;
    const tookMs = performance.now() - startMs;
    if (exitCode !== 42) throw new Error(`its program ended with ${exitCode}${message ? ` (${message})` : ""}`);
    return { ...check, ok: true, found: `started and gone in ${tookMs.toFixed(1)} ms` };
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error);
    return { ...check, ok: false, found, ...mendOf(found) };
  } finally {
    rmSync(layer, { recursive: true, force: true });
  }
}

/** What usually stands in the way when everything by itself works. */
function mendOf(found: string): { mend?: string } {
  if (/mount (?:proc|sysfs)/.test(found)) {
    return { mend: "let the agent see an unmasked /proc and /sys: in Docker, --security-opt systempaths=unconfined" };
  }
  if (/mount|move_mount|pivot/.test(found)) return { mend: "in a container: --security-opt apparmor=unconfined" };
  return {};
}
