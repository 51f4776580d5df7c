/**
 * A rootless agent under systemd and cgroup v2: limits in a scope that the user's service manager makes. Makes a user of the
 * host, so only where it is asked for: in the virtual machine of `npm run test:vm`.
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { AgentAnswer, AskedStep } from "./rootless-agent.ts";

const name = "slipway-rootless";
const root = fileURLToPath(new URL("../..", import.meta.url));

describe.skipIf(process.env["SLIPWAY_TEST_SYSTEMD"] !== "1")("a user with a service manager", () => {
  let uid = "";

  /** As the user, but in the cgroup of this test, which is root's, as a login session's is. */
  const run = (...command: string[]) => {
    const become = ["--reuid", uid, "--regid", uid, "--init-groups", "env", "-i", `HOME=/home/${name}`];
    const path = `PATH=${process.env["PATH"] ?? ""}`;
    return execFileSync("setpriv", [...become, path, ...command], { encoding: "utf8", cwd: `/home/${name}` });
  };

  beforeAll(async () => {
    execFileSync("useradd", ["--create-home", name]);
    uid = execFileSync("id", ["-u", name], { encoding: "utf8" }).trim();
    execFileSync("loginctl", ["enable-linger", name]);
    while (!existsSync(`/run/user/${uid}/systemd/private`)) await delay(100);
  });
  afterAll(() => {
    execFileSync("loginctl", ["disable-linger", name]);
    execFileSync("systemctl", ["stop", `user@${uid}.service`]);
    execFileSync("userdel", ["--remove", name], { stdio: "ignore" });
  });

  test("gets a scope of its own, and limits in it", () => {
    const asked: AskedStep[] = [
      { script: "python3 -c 'b = bytearray(200 << 20)'", memoryBytes: 64 << 20 },
      { script: "cat /proc/self/cgroup; id -u; echo fine" },
    ];
    const answer = run(
      process.execPath,
      "--require",
      `${root}runtime/load-typescript.cjs`,
      `${root}test/runtime/rootless-agent.ts`,
      JSON.stringify(asked),
    );
    const { steps, leftovers } = JSON.parse(answer) as AgentAnswer;
    expect(steps[0]).toMatchObject({ reason: "oom" });
    expect(steps[1]).toMatchObject({ exitCode: 0, stdout: "0::/\n0\nfine\n" });
    expect(leftovers).toEqual({ mounts: 0, containers: [] });
  });

  test("the doctor finds nothing missing", () => {
    const checks = JSON.parse(run(process.execPath, `${root}cli/slipway.cjs`, "doctor", "--json")) as {
      readonly name: string;
      readonly ok: boolean;
      readonly required: boolean;
      readonly found: string;
    }[];
    expect(checks.filter(({ ok, required }) => required && !ok)).toEqual([]);
    expect(checks.find((check) => check.name === "mode")?.found).toContain(`rootless, as ${name}`);
    expect(checks.find((check) => check.name === "cgroups")?.found).toBe("cgroup v2 with memory, cpu, pids");
  });

  test("has Podman run containers with it, in scopes and with limits", () => {
    const runtime = `/home/${name}/runtime`;
    writeFileSync(runtime, `#!/bin/sh\nexec '${process.execPath}' '${root}cli/slipway.cjs' oci "$@"\n`, {
      mode: 0o755,
    });
    const rootfs = `/home/${name}/rootfs`;
    for (const directory of ["bin", "proc", "sys", "dev", "etc", "tmp"])
      mkdirSync(`${rootfs}/${directory}`, { recursive: true });
    copyFileSync("/bin/busybox", `${rootfs}/bin/busybox`);
    symlinkSync("busybox", `${rootfs}/bin/sh`);
    execFileSync("chown", ["-R", `${uid}:${uid}`, rootfs]);
    const script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory.max; exit 7";
    const session = `XDG_RUNTIME_DIR=/run/user/${uid} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/${uid}/bus`;
    const podman = `podman --runtime ${runtime} run --rm --network none --memory 64m --rootfs ${rootfs} sh -c '${script}'`;
    expect(run("sh", "-c", `${session} ${podman} 2>&1 || echo ended with $?`)).toBe(
      `0::/\n${64 << 20}\nended with 7\n`,
    );
  });

  test("no scope is left", async () => {
    const scopes = () =>
      execFileSync("find", ["/sys/fs/cgroup", "(", "-name", "slipway-*.scope", "-o", "-name", "libpod-*.scope", ")"], {
        encoding: "utf8",
      });
    while (scopes() !== "") await delay(100);
    expect(scopes()).toBe("");
  });
});
