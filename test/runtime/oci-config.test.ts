import { describe, expect, test } from "vitest";
import { parseOciConfig, parseOciProcess, sysctlPath } from "../../runtime/oci-config.ts";
import { mountOptionNames, parseMountOptions } from "../../runtime/oci-mount-options.ts";
import { cpuWeight } from "../../runtime/cgroup-limits.ts";
import { cgroupPath, userManagerCgroup } from "../../runtime/oci-cgroup.ts";

const minimal = { ociVersion: "1.2.0", root: { path: "rootfs" }, process: { cwd: "/", args: ["true"] } };
const parse = (change: object) => parseOciConfig(JSON.stringify({ ...minimal, ...change }));
const linux = (section: object) => parse({ linux: section });

describe("parseOciConfig", () => {
  test.for(["1.0.0", "1.0.2-dev", "1.1.0+dev", "1.2.1", "1.3.0"])("takes version %s", (ociVersion) => {
    expect(parse({ ociVersion }).ociVersion).toBe(ociVersion);
  });

  test.for(["invalid", "0.9.0", "2.0.0", "1.4.0", ""])('refuses version "%s"', (ociVersion) => {
    expect(() => parse({ ociVersion })).toThrow(`ociVersion ${JSON.stringify(ociVersion)} is not supported`);
  });

  test("skips what it does not know, and Go's empty values", () => {
    const config = parse({
      unknown: { deep: 1 },
      hostname: null,
      windows: {},
      linux: { intelRdt: null, mountLabel: "" },
    });
    expect(config.hostname).toBeUndefined();
    expect(config).not.toHaveProperty("unknown");
  });

  test.for([
    [{ linux: { intelRdt: { closID: "a" } } }, "linux.intelRdt is not supported"],
    [{ linux: { netDevices: { eth0: {} } } }, "linux.netDevices is not supported"],
    [{ windows: { ignoreFlushesDuringBoot: true } }, "windows is not supported"],
    [{ vm: { kernel: { path: "/k" } } }, "vm is not supported"],
    [{ process: { cwd: "/", commandLine: "dir" } }, "process.commandLine is not supported"],
    [{ linux: { personality: { domain: "LINUX", flags: ["X"] } } }, "linux.personality.flags is not supported"],
  ] as const)("refuses %j by name", ([change, message]) => {
    expect(() => parse(change)).toThrow(message);
  });

  test.for([
    [{ process: { args: ["x"] } }, "process.cwd is missing"],
    [{ process: { cwd: "relative" } }, "process.cwd must be an absolute path"],
    [{ process: { cwd: "/", args: [] } }, "process.args is empty"],
    [{ process: { cwd: "/", user: { uid: -1 } } }, "process.user.uid must be a whole number from 0"],
    [
      { process: { cwd: "/", rlimits: [{ type: "RLIMIT_TEST", soft: 1, hard: 1 }] } },
      "process.rlimits[0].type must be one of",
    ],
    [
      { process: { cwd: "/", rlimits: [1, 2].map((soft) => ({ type: "RLIMIT_CORE", soft, hard: 2 })) } },
      "process.rlimits names RLIMIT_CORE twice",
    ],
    [{ hooks: { prestart: [{ path: "true" }] } }, "hooks.prestart[0].path must be an absolute path"],
    [{ linux: { namespaces: [{ type: "gadget" }] } }, "linux.namespaces[0].type must be one of"],
    [{ linux: { namespaces: [{ type: "pid" }, { type: "pid" }] } }, 'linux.namespaces names "pid" twice'],
    [{ linux: { namespaces: [{ type: "user" }] } }, "a new user namespace needs"],
    [{ linux: { uidMappings: [{ containerID: 0, hostID: 1, size: 1 }] } }, "need a user namespace"],
    [{ hostname: "x" }, "hostname needs a uts namespace"],
    [{ linux: { timeOffsets: { monotonic: { secs: 1 } } } }, "linux.timeOffsets need a time namespace"],
  ] as const)("refuses %j", ([change, message]) => {
    expect(() => parse(change)).toThrow(message);
  });

  test("refuses sysctls that would change the host", () => {
    const namespaces = [{ type: "network" }, { type: "ipc" }];
    expect(
      linux({ namespaces, sysctl: { "net.ipv4.ip_forward": "1", "kernel.msgmax": "1" } }).linux?.sysctl?.size,
    ).toBe(2);
    expect(() => linux({ namespaces, sysctl: { "kernel.core_pattern": "|/x" } })).toThrow("no namespace separates it");
    expect(() => linux({ namespaces: [], sysctl: { "net.ipv4.ip_forward": "1" } })).toThrow(
      "needs a network namespace",
    );
    expect(() => linux({ namespaces, sysctl: { "net/../kernel/core_pattern": "x" } })).toThrow("is not a name");
  });

  test("keeps whole numbers of 64 bits exact", () => {
    const text = JSON.stringify(minimal).replace(
      '"args"',
      '"rlimits":[{"type":"RLIMIT_AS","soft":9223372036854775807,"hard":18446744073709551615}],"args"',
    );
    const [limit] = parseOciConfig(text).process?.rlimits ?? [];
    expect(limit).toMatchObject({ soft: 2n ** 63n - 1n, hard: 2n ** 64n - 1n });
  });

  test("says that something is no JSON", () => {
    expect(() => parseOciConfig("{")).toThrow("config.json is no JSON");
    expect(() => parseOciProcess("[]")).toThrow("process must be an object");
  });
});

describe("parseMountOptions", () => {
  test("knows the options of the specification", () => {
    const wanted =
      `async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime
      noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime
      relatime remount rexec rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate
      rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime suid
      symfollow sync tmpcopyup unbindable idmap ridmap`.split(/\s+/);
    expect(mountOptionNames).toEqual(expect.arrayContaining(wanted));
    const foreign = wanted.filter((name) => parseMountOptions([name]).data.length > 0);
    expect(foreign.toSorted()).toEqual(["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"]);
  });

  test("lets the later of two options hold", () => {
    expect(parseMountOptions(["ro", "nosuid", "rw"]).attributes).toEqual({ set: 2, clear: 1 });
    expect(parseMountOptions(["noatime", "strictatime"]).attributes).toEqual({ set: 0x20, clear: 0x70 });
  });

  test("tells a mount's own attributes from recursive ones", () => {
    expect(parseMountOptions(["rbind", "bind"]).recursiveBind).toBe(true);
    const options = parseMountOptions(["rbind", "ro", "rnosuid", "rslave"]);
    expect(options).toMatchObject({ bind: true, recursiveBind: true, propagation: { recursive: true } });
    expect(options.attributes).toEqual({ set: 1, clear: 0 });
    expect(options.recursiveAttributes).toEqual({ set: 2, clear: 0 });
  });

  test("leaves to the file system what it does not know", () => {
    expect(parseMountOptions(["size=1k", "mode=755", "newinstance", "rubbish"]).data).toEqual([
      { key: "size", value: "1k" },
      { key: "mode", value: "755" },
      { key: "newinstance" },
      { key: "rubbish" },
    ]);
  });
});

test.for([
  ["0::/user.slice/user-7.slice/user@7.service/app.slice/a.scope\n", "/user.slice/user-7.slice/user@7.service"],
  [
    "4:memory:/\n1:name=systemd:/user.slice/user-7.slice/user@7.service\n0::/\n",
    "/user.slice/user-7.slice/user@7.service",
  ],
  ["0::/user.slice/user-7.slice/session-1.scope\n", ""],
] as const)("userManagerCgroup of %j", ([text, expected]) => {
  expect(userManagerCgroup(text)).toBe(expected);
});

describe("cgroupPath", () => {
  test.for([
    [undefined, undefined, "/slipway-oci/c1"],
    ["/a/b", undefined, "/a/b"],
    ["a/b", undefined, "/slipway-oci/a/b"],
    ["user.slice:libpod:c1", "", "/user.slice/libpod-c1.scope"],
    ["machine-qemu.slice:p:x", "", "/machine.slice/machine-qemu.slice/p-x.scope"],
    [":p:x", "", "/system.slice/p-x.scope"],
    ["user.slice:libpod:c1", "/user.slice/user@7.service", "/user.slice/user@7.service/user.slice/libpod-c1.scope"],
  ] as const)("places %s, systemd %s", ([path, systemd, expected]) => {
    expect(cgroupPath("c1", path, systemd)).toBe(expected);
  });

  test.for(["/", "/../x", "a/../../b"])("refuses %s", (path) => {
    expect(() => cgroupPath("c1", path, undefined)).toThrow("linux.cgroupsPath");
  });
});

describe("cpuWeight", () => {
  test.for([
    [2n, 1],
    [1024n, 100],
    [262_144n, 10_000],
  ] as const)("makes %d shares weight %d", ([shares, weight]) => {
    expect(cpuWeight(shares)).toBe(weight);
  });
});

describe("sysctlPath", () => {
  test("takes dots and slashes, and a name with dots of its own", () => {
    expect(sysctlPath("net.ipv4.ip_forward")).toBe("net/ipv4/ip_forward");
    expect(sysctlPath("net/ipv4/conf/eth0.1/forwarding")).toBe("net/ipv4/conf/eth0.1/forwarding");
    expect(sysctlPath("net.ipv4.conf.eth0/1.forwarding")).toBe("net/ipv4/conf/eth0.1/forwarding");
  });
});
