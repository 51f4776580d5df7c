import { describe, expect, test } from "vitest";
import { type LaunchPlan, planLaunch } from "../../runtime/launch-plan.ts";
import { compileProgram, type Operation, type SyscallOperation } from "../../runtime/program.ts";

const plan: LaunchPlan = {
  statusFd: 7,
  rootfs: { fd: 8 },
  processFd: 9,
  startFd: 10,
  attachPath: "/state/attach",
  idMap: { base: 268435456, size: 65536 },
  network: "own",
  hostname: "slipway",
  mounts: [
    { kind: "attach", fd: 11, target: "dev" },
    { kind: "mount", type: "proc", target: "proc", flags: 14 },
  ],
  maskedPaths: [
    { path: "proc/kcore", directory: false },
    { path: "proc/acpi", directory: true },
    { path: "sys/firmware", directory: true },
  ],
  readonlyPaths: ["proc/sys"],
  rlimits: [{ type: "RLIMIT_CORE", soft: 0n, hard: 0n }],
  capabilities: ["CAP_CHOWN"],
  lastCapability: 40,
  user: { uid: 1000, gid: 1000, additionalGids: [27] },
  cwd: "/workspace",
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
    expect(named('mount proc on "/proc"')).toBeLessThan(named("detach the host's root"));
  });

  test("masks and makes read-only before the program's own root", () => {
    expect(named('mask "/proc/kcore"')).toBeLessThan(named("pivot into the root file system"));
    expect(named('make "/proc/sys" read-only')).toBeLessThan(named("pivot into the root file system"));
  });

  test("covers all masked directories with one tmpfs", () => {
    const masks = calls.filter(({ name }) => name === 'mask "/proc/acpi"' || name === 'mask "/sys/firmware"');
    expect(masks.map(({ args }) => args[0])).toEqual([{ text: "tmpfs" }, { text: "proc/acpi" }]);
  });

  test("drops the bounding set, then changes the user, then sets capabilities, then no_new_privs", () => {
    const order = [
      "drop CAP_SYS_ADMIN",
      "become user 1000",
      "set capabilities",
      "die with the agent",
      "set no_new_privs",
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

  test("waits for the start before it reads arguments, and clones the payload after", () => {
    expect(named("wait for the start")).toBeLessThan(named("read the arguments and environment"));
    expect(named("read the arguments and environment")).toBeLessThan(named("clone the payload"));
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
    const CLONE_INTO_CGROUP = 0x200000000n;
    const CLONE_NEWNET = 0x40000000n;
    expect(flags({}).flags & CLONE_INTO_CGROUP).toBe(0n);
    expect(flags({ cgroupFd: 12 })).toEqual({ flags: flags({}).flags | CLONE_INTO_CGROUP, cgroup: 12n });
    expect(flags({}).flags & CLONE_NEWNET).toBe(CLONE_NEWNET);
    expect(flags({ network: "host" }).flags & CLONE_NEWNET).toBe(0n);
  });
});
