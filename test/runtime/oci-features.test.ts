/** What `slipway oci features` says, against the specification's features.md and features-linux.md (1.3), name by name. */
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { parseOciConfig } from "../../runtime/oci-config.ts";
import { ociFeatures } from "../../runtime/oci-features.ts";
import { parseMountOptions } from "../../runtime/oci-mount-options.ts";
import { ociSeccomp } from "../../runtime/seccomp-oci.ts";

const strings = z.array(z.string()).optional();
const enabled = z.strictObject({ enabled: z.boolean().optional() }).optional();
const boolean = z.boolean().optional();

/** Strict: "The Features structure MUST NOT contain properties that are not defined in this version". */
const featuresSchema = z.strictObject({
  ociVersionMin: z.string().regex(/^\d+\.\d+\.\d+/),
  ociVersionMax: z.string().regex(/^\d+\.\d+\.\d+/),
  hooks: strings,
  mountOptions: strings,
  annotations: z.record(z.string().min(1), z.string()).optional(),
  potentiallyUnsafeConfigAnnotations: strings,
  linux: z
    .strictObject({
      namespaces: z.array(z.enum(["mount", "pid", "network", "uts", "ipc", "user", "cgroup", "time"])).optional(),
      capabilities: z.array(z.string().regex(/^CAP_[A-Z_]+$/)).optional(),
      cgroup: z
        .strictObject({ v1: boolean, v2: boolean, systemd: boolean, systemdUser: boolean, rdma: boolean })
        .optional(),
      seccomp: z
        .strictObject({
          enabled: boolean,
          actions: z
            .array(z.string().regex(/^SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|TRACE|ALLOW|LOG|NOTIFY)$/))
            .optional(),
          operators: z.array(z.string().regex(/^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$/)).optional(),
          archs: z.array(z.string().regex(/^SCMP_ARCH_[A-Z0-9_]+$/)).optional(),
          knownFlags: strings,
          supportedFlags: strings,
        })
        .optional(),
      apparmor: enabled,
      selinux: enabled,
      intelRdt: z.strictObject({ enabled: boolean, schemata: boolean, monitoring: boolean }).optional(),
      memoryPolicy: z.strictObject({ modes: strings, flags: strings }).optional(),
      mountExtensions: z.strictObject({ idmap: enabled }).optional(),
      netDevices: enabled,
    })
    .optional(),
});

const features = featuresSchema.parse(JSON.parse(JSON.stringify(ociFeatures("1.2.3"))));
const base = { ociVersion: "1.0.0", root: { path: "rootfs" }, process: { cwd: "/", args: ["true"] } };
const accepts = (change: object) => parseOciConfig(JSON.stringify({ ...base, ...change }));

describe("the runtime recognizes what it says it does:", () => {
  test("versions, least and highest", () => {
    const { ociVersionMin, ociVersionMax } = features;
    for (const ociVersion of [ociVersionMin, ociVersionMax])
      expect(accepts({ ociVersion })).toMatchObject({ ociVersion });
  });

  test("hooks", () => {
    const list = [{ path: "/bin/true" }];
    for (const name of features.hooks ?? []) expect(accepts({ hooks: { [name]: list } }).hooks).toHaveProperty(name);
  });

  test("mount options", () => {
    expect(features.mountOptions).toContain("ridmap");
    const options = features.mountOptions?.map((option) => parseMountOptions([option]));
    // What is not recognized would be the file system's own; these the kernel takes from any, by the same way (fsconfig).
    const flags = ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];
    expect(options?.flatMap(({ data }) => data.map(({ key }) => key)).toSorted()).toEqual(flags);
  });

  test("namespaces", () => {
    const ids = [{ containerID: 0, hostID: 1000, size: 1 }];
    for (const type of features.linux?.namespaces ?? []) {
      const mappings = type === "user" ? { uidMappings: ids, gidMappings: ids } : {};
      expect(accepts({ linux: { namespaces: [{ type }], ...mappings } }).linux?.namespaces).toEqual([{ type }]);
    }
  });

  test("capabilities", () => {
    const bounding = features.linux?.capabilities ?? [];
    expect(bounding).toContain("CAP_CHECKPOINT_RESTORE");
    expect(accepts({ process: { ...base.process, capabilities: { bounding } } }).process?.capabilities).toMatchObject({
      bounding,
    });
  });

  test("actions, operators, architectures and flags of seccomp", () => {
    const { actions = [], operators = [], archs = [], supportedFlags = [] } = features.linux?.seccomp ?? {};
    for (const action of actions) {
      for (const op of operators) {
        const syscalls = [{ names: ["getpid"], action, args: [{ index: 0, value: 1, valueTwo: 1, op }] }];
        const filter = { defaultAction: "SCMP_ACT_ALLOW", architectures: archs, flags: supportedFlags, syscalls };
        expect(() => ociSeccomp(filter, "x64")).not.toThrow();
      }
    }
  });

  test("modes and flags of memory policies", () => {
    const { modes = [], flags = [] } = features.linux?.memoryPolicy ?? {};
    for (const mode of modes) expect(accepts({ linux: { memoryPolicy: { mode, flags } } }).linux).toBeDefined();
  });
});
