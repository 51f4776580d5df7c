/** Configurations that mean no good: a clear error within a moment, and nothing that stays. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Change, OciWorld } from "./oci-bundle.ts";

let world: OciWorld;

beforeAll(() => {
  world = new OciWorld();
});
afterAll(() => world[Symbol.dispose]());

function refused(text: string): string {
  const { path } = world.bundle("true");
  writeFileSync(join(path, "config.json"), text);
  return outcome(path);
}

function outcome(bundle: string): string {
  const id = world.id();
  const { code, stderr } = world.run("run", "--bundle", bundle, id);
  expect(code).toBe(1);
  expect(stderr).not.toContain("    at "); // a stack trace is for our own errors
  expect(existsSync(join(world.root, id))).toBe(false);
  for (const name of readdirSync("/sys/fs/cgroup")) {
    expect(existsSync(`/sys/fs/cgroup/${name}/slipway-oci/${id}`)).toBe(false);
  }
  return stderr;
}

function refusedChange(change: Change): string {
  return outcome(world.bundle("true", change).path);
}

describe("a config.json that is none", () => {
  test.each([
    ["", "config.json is no JSON"],
    ["null", "config.json must be an object, not null"],
    ["[]", "config.json must be an object, not []"],
    [`${'{"a":'.repeat(300_000)}1${"}".repeat(300_000)}`, "config.json is no JSON"],
    [`"${"x".repeat(17 << 20)}"`, "16777216 are the most"],
  ])("%.20s", (text, message) => {
    expect(refused(text)).toContain(message);
  });

  test("is not waited for", () => {
    const { path } = world.bundle("true");
    const config = join(path, "config.json");
    rmSync(config);
    execFileSync("mkfifo", [config]);
    expect(outcome(path)).toContain("config.json is no file");
  });
});

describe("a configuration", () => {
  test.each<[string, Change, string]>([
    ["with NULs", { process: { args: ["/bin/true\0x"] } }, "process.args[0] must be a string without NUL"],
    [
      "of a program that is a directory",
      { process: { args: ["/usr"] } },
      'Cannot execute "/usr": it is not executable',
    ],
    ["with more arguments than execve takes", { process: { args: ["/bin/true", "x".repeat(200_000)] } }, "E2BIG"],
    [
      "with more groups than there may be",
      { process: { user: { additionalGids: Array.from({ length: 70_000 }, () => 1) } } },
      "set additional groups: EINVAL",
    ],
    [
      "with a property of every object for a mode",
      { linux: { memoryPolicy: { mode: "constructor" } } },
      'mode "constructor" is unknown',
    ],
    ["with a cgroup that leads upwards", { linux: { cgroupsPath: "../../x" } }, "must not lead upwards"],
    [
      "with a cgroup of a thousand levels",
      { linux: { cgroupsPath: "/x".repeat(1000) } },
      "1000 cgroups deep: 64 are the most",
    ],
    ["with a host name that is too long", { hostname: "x".repeat(65) }, "set the host name"],
    ["with a sysctl that leads upwards", { linux: { sysctl: { "net/../kernel/core_pattern": "x" } } }, "is not a name"],
    ["with a sysctl of the host", { linux: { sysctl: { "kernel.core_pattern": "x" } } }, "no namespace separates it"],
    [
      "with a namespace of another type",
      { linux: { namespaces: [{ type: "mount" }, { type: "uts" }, { type: "pid", path: "/etc/passwd" }] } },
      '"/etc/passwd" is no pid namespace',
    ],
    [
      "with a hook that is missing",
      { hooks: { createRuntime: [{ path: "/nothing" }] } },
      'error running createRuntime hook #0: "/nothing" cannot be executed: ENOENT\n',
    ],
    [
      "with a hook that does not end",
      { hooks: { createRuntime: [{ path: "/bin/sleep", args: ["sleep", "1000"], timeout: 1 }] } },
      "took longer than 1 s",
    ],
    [
      "with a hook inside that does not end",
      { hooks: { createContainer: [{ path: "/bin/sleep", args: ["sleep", "1000"], timeout: 1 }] } },
      'createContainer hook #0: "/bin/sleep" failed',
    ],
    [
      "whose seccomp filter asks nobody",
      {
        linux: {
          seccomp: {
            defaultAction: "SCMP_ACT_ALLOW",
            syscalls: [{ names: ["read"], action: "SCMP_ACT_NOTIFY" }],
          },
        },
      },
      "linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY needs somebody who answers",
    ],
    [
      "with more seccomp rules than the kernel takes",
      {
        linux: {
          seccomp: {
            defaultAction: "SCMP_ACT_ALLOW",
            syscalls: Array.from({ length: 3000 }, (_, value) => ({
              names: ["read"],
              action: "SCMP_ACT_ERRNO",
              args: [{ index: 0, op: "SCMP_CMP_EQ", value }],
            })),
          },
        },
      },
      "linux.seccomp has too many rules",
    ],
    ["that moves network devices", { linux: { netDevices: { eth0: {} } } }, "linux.netDevices is not supported"],
    ["for resctrl", { linux: { intelRdt: { closID: "x" } } }, "linux.intelRdt is not supported"],
    ["of a virtual machine", { vm: { kernel: { path: "/x" } } }, "vm is not supported"],
  ])("%s is refused by name", (_, change, message) => {
    expect(refusedChange(change)).toContain(message);
  });
});
