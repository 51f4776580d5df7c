import { mkdirSync, rmdirSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { findCgroupMounts } from "../../runtime/oci-cgroup.ts";
import { deviceLine, deviceProgram, deviceRules, loadDeviceFilter, mayUse } from "../../runtime/oci-device-filter.ts";
import { EPERM } from "../../runtime/linux.ts";
import { compileProgram, failMessage, messageBytes } from "../../runtime/program.ts";
import { reap } from "../../runtime/reaper.ts";
import { placeDescriptors, startProgram } from "../../runtime/start-program.ts";
import { architecture, close, open, pipe, syscall } from "../../runtime/syscall.ts";

const denyAll = { allow: false, access: "rwm" } as const;

/** Runs the few instructions that the program is made of. @see kernel, Documentation/bpf/standardization/instruction-set.rst */
function allows(code: Buffer, device: { type: "b" | "c"; major: number; minor: number; access: number }): boolean {
  const context = [(device.access << 16) | (device.type === "b" ? 1 : 2), device.major, device.minor];
  const registers = Array.from({ length: 11 }, () => 0);
  for (let at = 0; ; at++) {
    const op = code.readUInt8(8 * at);
    const destination = code.readUInt8(8 * at + 1) & 15;
    const source = code.readUInt8(8 * at + 1) >> 4;
    const offset = code.readInt16LE(8 * at + 2);
    const immediate = code.readInt32LE(8 * at + 4);
    const [left = 0, right = 0] = [registers[destination], registers[source]];
    if (op === 0x61) registers[destination] = context[offset / 4] ?? 0;
    else if (op === 0x54) registers[destination] = left & immediate;
    else if (op === 0x74) registers[destination] = left >>> immediate;
    else if (op === 0xb4) registers[destination] = immediate;
    else if (op === 0xbc) registers[destination] = right;
    else if (op === 0x55) at += left === immediate ? 0 : offset;
    else if (op === 0x15) at += left === immediate ? offset : 0;
    else if (op === 0x5d) at += left === right ? 0 : offset;
    else if (op === 0x95) return registers[0] === 1;
    else throw new Error(`instruction ${op}`);
  }
}

describe("mayUse", () => {
  test("goes by the last rule that says something of a device", () => {
    const rules = deviceRules([denyAll, { allow: true, type: "c", major: 10n, minor: 229n, access: "rw" }]) ?? [];
    expect(mayUse(rules, { type: "c", major: 10, minor: 229 })).toBe(true);
    expect(mayUse(rules, { type: "c", major: 1, minor: 3 })).toBe(true);
    expect(mayUse(rules, { type: "c", major: 10, minor: 200 })).toBe(false);
    expect(mayUse(rules, { type: "b", major: 10, minor: 229 })).toBe(false);
  });
});

describe("deviceRules", () => {
  test("are none where the configuration has none", () => {
    expect(deviceRules(undefined)).toBeUndefined();
    expect(deviceRules([])).toBeUndefined();
  });

  test("as lines of v1", () => {
    const rules = deviceRules([denyAll, { allow: true, type: "b", major: 8n, minor: -1n, access: "r" }]);
    const lines = rules?.map(deviceLine);
    expect(lines?.slice(0, 2)).toEqual([
      { file: "devices.deny", line: "a" },
      { file: "devices.allow", line: "b 8:* r" },
    ]);
    expect(lines).toContainEqual({ file: "devices.allow", line: "c 1:3 rwm" });
    expect(lines?.at(-1)).toEqual({ file: "devices.allow", line: "c 136:* rwm" });
  });

  test("refuse letters that are no access", () => {
    expect(() => deviceRules([{ allow: true, access: "rx" }])).toThrow("linux.resources.devices[0].access");
  });
});

describe("deviceProgram", () => {
  const program = (rules: Parameters<typeof deviceRules>[0]) => deviceProgram(deviceRules(rules) ?? []);
  const [mknod, read, write] = [1, 2, 4];

  test("lets the usual devices through and refuses others", () => {
    const code = program([denyAll]);
    expect(allows(code, { type: "c", major: 1, minor: 3, access: read | write })).toBe(true);
    expect(allows(code, { type: "c", major: 136, minor: 77, access: write })).toBe(true);
    expect(allows(code, { type: "b", major: 8, minor: 0, access: mknod })).toBe(true);
    expect(allows(code, { type: "b", major: 8, minor: 0, access: read })).toBe(false);
    expect(allows(code, { type: "c", major: 1, minor: 1, access: read })).toBe(false);
  });

  test("an allowing rule must hold all of what is asked for", () => {
    const code = program([denyAll, { allow: true, type: "b", major: 8n, access: "r" }]);
    expect(allows(code, { type: "b", major: 8, minor: 5, access: read })).toBe(true);
    expect(allows(code, { type: "b", major: 8, minor: 5, access: read | write })).toBe(false);
    expect(allows(code, { type: "c", major: 8, minor: 5, access: read })).toBe(false);
  });

  test("the last rule that matches decides, a denying one takes any part", () => {
    const code = program([
      { allow: true, access: "rwm" },
      { allow: false, type: "c", major: 10n, minor: 229n, access: "w" },
    ]);
    expect(allows(code, { type: "c", major: 10, minor: 229, access: read })).toBe(true);
    expect(allows(code, { type: "c", major: 10, minor: 229, access: read | write })).toBe(false);
    expect(allows(code, { type: "c", major: 10, minor: 200, access: write })).toBe(true);
  });
});

describe("loadDeviceFilter", () => {
  const unified = findCgroupMounts().find(({ version }) => version === 2);

  test.skipIf(unified === undefined)("the kernel takes and obeys it", async () => {
    const cgroup = `${unified?.mountPoint}/slipway-device-test-${process.pid}`;
    mkdirSync(cgroup);
    const status = pipe();
    const procs = open(`${cgroup}/cgroup.procs`, 1);
    const { targets, pairs } = placeDescriptors([status.write, procs] as const);
    try {
      const rules = [
        { allow: false, type: "a", major: undefined, minor: undefined, access: "rwm" },
        { allow: true, type: "c", major: 1, minor: 3, access: "rw" },
      ] as const;
      const openDevice = (path: string) => ({ name: path, call: "openat", args: [-100, { text: path }, 0, 0] });
      const operations = [
        { name: "join", call: "write", args: [targets[1], { text: "0" }, 1] },
        ...loadDeviceFilter(rules, cgroup),
        openDevice("/dev/null"),
        openDevice("/dev/zero"),
        { name: "end", call: "exit_group", args: [0] },
      ];
      const program = compileProgram(operations, { architecture, statusFd: targets[0] });
      const { exitCode } = await reap(startProgram(program.file, "device-test", pairs));
      const message = Buffer.alloc(messageBytes);
      expect([exitCode, syscall("read", status.read, message, message.length)]).toEqual([127, messageBytes]);
      expect([message.readUInt32LE(0), message.readUInt32LE(4)]).toEqual([failMessage, EPERM]);
      expect(program.operationAt(message.readBigUInt64LE(8))).toMatchObject({ name: "/dev/zero" });
    } finally {
      for (const fd of [status.read, status.write, procs]) close(fd);
      rmdirSync(cgroup);
    }
  });
});
