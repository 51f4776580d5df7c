import { describe, expect, test } from "vitest";
import { type LaunchPlan, planLaunch } from "../../runtime/launch-plan.ts";
import { parseMountOptions } from "../../runtime/oci-mount-options.ts";
import { compileProgram, type Operation, type SyscallOperation } from "../../runtime/program.ts";

const tmpfs = parseMountOptions(["nosuid", "mode=1777"]);
const plan: LaunchPlan = {
  statusFd: 7,
  rootfs: { fd: 8 },
  processFd: 9,
  startFd: 10,
  attachPath: "/state/attach",
  config: {
    hostname: "slipway",
    process: {
      cwd: "/workspace",
      user: { uid: 1000, gid: 1000, additionalGids: [27] },
      capabilities: { bounding: ["CAP_CHOWN"] },
      rlimits: [{ type: "RLIMIT_CORE", soft: 0n, hard: 0n }],
      noNewPrivileges: true,
    },
    linux: {
      namespaces: (["user", "mount", "pid", "ipc", "uts", "cgroup", "network"] as const).map((type) => ({ type })),
      uidMappings: [{ containerID: 0, hostID: 268435456, size: 65536 }],
      gidMappings: [{ containerID: 0, hostID: 268435456, size: 65536 }],
      maskedPaths: ["/proc/kcore", "/proc/acpi", "/sys/firmware"],
      readonlyPaths: ["/proc/sys"],
    },
  },
  mounts: [
    { kind: "tree", fd: 11, destination: "/dev", isDirectory: true, readonlyAtLast: false },
    {
      kind: "new",
      type: "proc",
      source: "proc",
      destination: "/proc",
      options: parseMountOptions(["nosuid"]),
      readonlyAtLast: false,
    },
    { kind: "new", type: "tmpfs", source: "tmpfs", destination: "/var/cache", options: tmpfs, readonlyAtLast: true },
  ],
  lastCapability: 40,
};

const operations = planLaunch(plan);
const calls = operations.filter((operation): operation is SyscallOperation => "call" in operation);

function indexOf(match: (operation: SyscallOperation) => boolean): number {
  const index = calls.findIndex(match);
  expect(index).toBeGreaterThanOrEqual(0);
  return index;
}
const named = (name: string) => indexOf((operation) => operation.name === name);

test.for(["x64", "arm64"] as const)("planLaunch compiles for %s", (architecture) => {
  expect(compileProgram(operations, { architecture, statusFd: 7 }).file.length).toBeGreaterThan(4096);
});

describe("planLaunch", () => {
  test("mounts proc before the host's root is gone: in a user namespace the kernel wants to see another", () => {
    expect(named('attach "/proc"')).toBeLessThan(named("detach the host's root"));
  });

  test("masks and makes read-only before the program's own root", () => {
    expect(named('mask "/proc/kcore"')).toBeLessThan(named("pivot into the root file system"));
    expect(named('make "/proc/sys" read-only')).toBeLessThan(named("pivot into the root file system"));
  });

  test("attaches what is ours by its path, all else by what its place was found to be", () => {
    const attach = (path: string) => calls[named(`attach "${path}"`)]?.args[2];
    expect(attach("/proc")).toBe(-100); // AT_FDCWD: the root file system
    expect(attach("/var/cache")).toEqual({ load: "target" });
    expect(named('open "/var/cache" in the container')).toBeLessThan(named('attach "/var/cache"'));
  });

  test("drops the bounding set, then changes the user, then sets capabilities, then no_new_privs, then how to die", () => {
    const order = [
      "drop CAP_SYS_ADMIN",
      "become user 1000",
      "set capabilities",
      "set no_new_privs",
      "die with the agent",
    ];
    const indexes = order.map(named);
    expect(indexes).toEqual(indexes.toSorted((a, b) => a - b));
  });

  test("drops every capability but those that are kept", () => {
    const dropped = calls.filter(({ name }) => name.startsWith("drop ")).map(({ name }) => name.slice(5));
    expect(dropped).toHaveLength(40);
    expect(dropped).not.toContain("CAP_CHOWN");
  });

  test("gives no capability to a user who is not root", () => {
    const sets = calls[named("set capabilities")]?.args[1];
    expect(sets).toEqual({ bytes: Buffer.alloc(24) });
  });

  test("clones the payload ahead; after the start it reads arguments and executes them, and does nothing else", () => {
    expect(named("clone the payload")).toBeLessThan(named("wait for the start"));
    const names = calls.slice(named("wait for the start") + 1, named("execute the program")).map(({ name }) => name);
    expect(names).toEqual(["become dumpable", "read the arguments and environment", "read the clock"]);
  });

  test("reports the payload's end when nothing but init is left", () => {
    expect(named("kill what is left")).toBeLessThan(named("wait for what is left"));
    expect(named("wait for what is left")).toBeLessThan(named("report the payload's end"));
  });

  test("does not wait when the arguments are there already", () => {
    const { startFd: _, ...immediate } = plan;
    const names = planLaunch(immediate).flatMap((operation: Operation) =>
      "name" in operation ? [operation.name] : [],
    );
    expect(names).not.toContain("wait for the start");
  });

  test("clones into a v2 cgroup where one is given, and into the host's network where that is asked for", () => {
    const flags = (extra: Partial<LaunchPlan>) => {
      const clone = planLaunch({ ...plan, ...extra }).find(
        (operation) => "memory" in operation && operation.memory === "cloneArguments",
      );
      const bytes = clone !== undefined && "bytes" in clone ? Buffer.from(clone.bytes ?? []) : Buffer.alloc(88);
      return { flags: bytes.readBigUInt64LE(0), cgroup: bytes.readBigUInt64LE(80) };
    };
    const { linux } = plan.config;
    const namespaces = linux?.namespaces?.filter(({ type }) => type !== "network") ?? [];
    const hostNetwork: Partial<LaunchPlan> = { config: { ...plan.config, linux: { ...linux, namespaces } } };
    const CLONE_INTO_CGROUP = 0x200000000n;
    const CLONE_NEWNET = 0x40000000n;
    expect(flags({}).flags & CLONE_INTO_CGROUP).toBe(0n);
    expect(flags({ cgroupFd: 12 })).toEqual({ flags: flags({}).flags | CLONE_INTO_CGROUP, cgroup: 12n });
    expect(flags({}).flags & CLONE_NEWNET).toBe(CLONE_NEWNET);
    expect(flags(hostNetwork).flags & CLONE_NEWNET).toBe(0n);
  });
});
