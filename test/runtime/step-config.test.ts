import { describe, expect, test } from "vitest";
import { evaluateBpf } from "../../runtime/bpf.ts";
import { OciConfigError } from "../../runtime/oci-parser.ts";
import { parseOciConfig } from "../../runtime/oci-config.ts";
import { ociSeccomp } from "../../runtime/seccomp-oci.ts";
import { seccompProfile } from "../../runtime/seccomp.ts";
import { profileSeccomp } from "../../runtime/seccomp-profile-oci.ts";
import { formatOciConfig, type HostFacts, stepConfig, type StepOptions } from "../../runtime/step-config.ts";
import { type LaunchContext, planStep } from "../../runtime/step-launch.ts";
import { syscallNumbers } from "../../runtime/syscall-table.ts";
import { architecture } from "../../runtime/syscall.ts";

const host: HostFacts = {
  maskedPaths: ["/proc/kcore"],
  readonlyPaths: ["/proc/sys"],
  maxOpenFiles: 1n << 20n,
  oomScoreAdj: 500,
  hasCgroups: true,
  mapsIds: true,
  mountsWritableSysfs: true,
};
const step: StepOptions = {
  program: { args: ["/bin/true"], env: { PATH: "/bin" } },
  cwd: "/workspace",
  hostname: "slipway",
  user: { uid: 0, gid: 0 },
  idMappings: [{ containerID: 0, hostID: 1 << 28, size: 1 << 18 }],
  network: "none",
  resources: { memory: { limit: 1n << 30n }, pids: { limit: 100n }, unified: new Map([["memory.oom.group", "1"]]) },
  binds: [{ source: "/usr", target: "usr" }],
  workspace: { source: "/data/workspace" },
  mounts: [],
  devices: [],
};
const namespaces = (options: Partial<StepOptions>) => stepConfig({ ...step, ...options }, host).linux?.namespaces ?? [];

describe("stepConfig", () => {
  test("is a configuration that slipway oci takes, as it is printed", () => {
    const parsed = parseOciConfig(formatOciConfig(stepConfig(step, host)));
    expect(parsed.process?.args).toEqual(["/bin/true"]);
    expect(parsed.process?.env).toEqual(["PATH=/bin"]);
    expect(parsed.linux?.resources).toEqual(step.resources);
  });

  test("has every namespace of its own, but the network that it is given", () => {
    const all = ["user", "mount", "pid", "ipc", "uts", "cgroup"];
    expect(namespaces({}).map(({ type }) => type)).toEqual([...all, "network"]);
    expect(namespaces({ network: "host" }).map(({ type }) => type)).toEqual(all);
    expect(namespaces({ network: { path: "/proc/1/ns/net" } }).at(-1)).toEqual({
      type: "network",
      path: "/proc/1/ns/net",
    });
  });

  test("gives root Docker's capabilities, everybody else none, and nobody an inheritable one", () => {
    const sets = (uid: number) => stepConfig({ ...step, user: { uid, gid: uid } }, host).process?.capabilities;
    expect(sets(0)?.effective).toHaveLength(14);
    expect(sets(0)?.effective).toEqual(sets(0)?.bounding);
    expect(sets(1000)).toMatchObject({ effective: [], permitted: [], ambient: [], inheritable: [] });
    expect(sets(1000)?.bounding).toHaveLength(14);
    expect(sets(0)?.inheritable).toEqual([]);
  });

  test("puts further mounts behind the workspace, in their order", () => {
    const { mounts = [] } = stepConfig(
      {
        ...step,
        mounts: [
          { type: "bind", source: "/cache", target: "/root/.npm" },
          { type: "tmpfs", target: "/scratch", sizeBytes: 1 << 20, mode: 0o700 },
          { type: "bind", source: "/data", target: "/data", readonly: true, recursive: true },
        ],
      },
      host,
    );
    expect(mounts.map(({ destination }) => destination).slice(-5)).toEqual([
      "/usr",
      "/workspace",
      "/root/.npm",
      "/scratch",
      "/data",
    ]);
    expect(mounts.at(-3)?.options).toEqual(["bind", "nosuid", "nodev", "idmap"]);
    expect(mounts.at(-2)?.options).toEqual(["nosuid", "nodev", "mode=700", "size=1048576"]);
    expect(mounts.at(-1)?.options).toEqual(["rbind", "rnosuid", "rnodev", "ridmap", "rro"]);
  });
});

describe("planStep", () => {
  const source = (name: string) => ({ name, open: () => -1 });
  const context: LaunchContext = {
    architecture,
    attachPath: "/state/attach",
    lastCapability: 40,
    keepsGroups: false,
    hierarchies: [{ name: "", version: 2, controllers: [] }],
    status: source("status"),
    process: source("process"),
    network: source("network"),
    rootfs: { whole: source("root") },
    make: {
      bind: (mount) => ({ open: () => -1, isDirectory: mount.source !== "/file" }),
      dev: () => -1,
      boundDevices: () => [],
      hostSys: () => -1,
      files: () => -1,
      overlay: () => -1,
    },
  };
  const config = stepConfig(step, host);

  test("has every mount of the configuration, what the agent makes by descriptor", () => {
    const { plan, sources } = planStep(config, context);
    expect(plan.mounts.map(({ kind, destination }) => `${kind} ${destination}`)).toEqual([
      "tree /dev",
      "new /proc",
      "new /sys",
      "new /dev/pts",
      "new /dev/shm",
      "new /dev/mqueue",
      "new /sys/fs/cgroup",
      "tree /usr",
      "tree /workspace",
    ]);
    expect(sources.map(({ name }) => name)).toEqual([
      "status",
      "process",
      "network",
      "root",
      "mount of /dev",
      "mount of /usr",
      "mount of /workspace",
    ]);
  });

  test.for([
    ["hooks", { hooks: { poststop: [{ path: "/bin/true" }] } }],
    ["process.terminal", { process: { cwd: "/", terminal: true } }],
    ["process.apparmorProfile", { process: { cwd: "/", apparmorProfile: "x" } }],
    ["linux.cgroupsPath", { linux: { ...config.linux, cgroupsPath: "/x" } }],
    ["linux.rootfsPropagation", { linux: { ...config.linux, rootfsPropagation: "shared" } }],
    ["linux.namespaces", { linux: { ...config.linux, namespaces: [{ type: "user" }] } }],
    ["root itself", { mounts: [{ destination: "/", type: "tmpfs" }] }],
  ] as const)("refuses %s by its name", ([name, change]) => {
    const attempt = () => planStep({ ...config, ...change }, context);
    expect(attempt).toThrow(OciConfigError);
    expect(attempt).toThrow(name);
  });
});

test.for(["default", "nested"] as const)("profileSeccomp says what the filter of profile %s does", (profile) => {
  const own = seccompProfile(profile, architecture).program;
  const oci = ociSeccomp(profileSeccomp(profile), architecture).program;
  const auditArch = architecture === "x64" ? 0xc000_003e : 0xc000_00b7;
  const data = Buffer.alloc(64);
  data.writeUInt32LE(auditArch, 4);
  const interesting = [0, 1, 2, 3, 8, 10, 16, 17, 18, 0x40, 0x5412, 0x541c, 0x5423, 0x5413, 0x2_0000, 0x4_0000];
  const values = [...interesting, 0x1000_0000, 0x7e02_0000, 0x0002_0011, 0x8000_0000, 0xffff_ffff];
  const numbers = new Set([...syscallNumbers(architecture).values(), 463, 599, 4000]);
  for (const number of numbers) {
    data.writeInt32LE(number, 0);
    for (const value of values) {
      for (const high of [0, 1]) {
        for (const index of [0, 1]) {
          data.fill(0, 16);
          data.writeUInt32LE(value, 16 + 8 * index);
          data.writeUInt32LE(high, 20 + 8 * index);
          const answers = [own, oci].map((program) => evaluateBpf(program, data).value);
          expect(answers[1], `call ${number}, argument ${index} = ${high}:${value.toString(16)}`).toBe(answers[0]);
        }
      }
    }
  }
});
