/**
 * The device rules of a container: lines for cgroup v1, an eBPF program for v2.
 *
 * @see https://docs.kernel.org/admin-guide/cgroup-v2.html, "Device controller"
 */
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY, AT_FDCWD } from "./linux.ts";
import type { OciDeviceRule } from "./oci-config.ts";
import { OciConfigError } from "./oci-parser.ts";
import type { Operation } from "./program.ts";

export interface DeviceRule {
  readonly allow: boolean;
  readonly type: "a" | "b" | "c";
  /** Undefined: any. */
  readonly major: number | undefined;
  readonly minor: number | undefined;
  readonly access: string;
}

const wildcard = (type: "b" | "c", access: string): DeviceRule => ({
  allow: true,
  type,
  major: undefined,
  minor: undefined,
  access,
});
const character = (major: number, minor?: number): DeviceRule => ({
  allow: true,
  type: "c",
  major,
  minor,
  access: "rwm",
});

/** What every container may use, whatever its rules say, as runc has it: nodes may be made, those of a /dev be used. */
const always: readonly DeviceRule[] = [
  wildcard("c", "m"),
  wildcard("b", "m"),
  character(1, 3),
  character(1, 5),
  character(1, 7),
  character(1, 8),
  character(1, 9),
  character(5, 0),
  character(5, 1),
  character(5, 2),
  character(136),
];

/**
 * Undefined if the configuration has no rules: then every device may be used. A node that `linux.devices` asks for may be
 * forbidden all the same: the rules say so, as with runc.
 *
 * @throws {OciConfigError}
 */
export function deviceRules(rules: readonly OciDeviceRule[] | undefined): readonly DeviceRule[] | undefined {
  if (rules === undefined || rules.length === 0) return undefined;
  const number = (value: bigint | undefined) => (value === undefined || value < 0n ? undefined : Number(value));
  const parsed = rules.map((rule, i): DeviceRule => {
    const access = rule.access || "rwm";
    if (!/^[rwm]{1,3}$/.test(access)) {
      throw new OciConfigError(`linux.resources.devices[${i}].access must be of the letters r, w, m, not "${access}"`);
    }
    return { allow: rule.allow, type: rule.type || "a", major: number(rule.major), minor: number(rule.minor), access };
  });
  return [...parsed, ...always];
}

/** Whether the rules let a device be opened at all. */
export function mayUse(
  rules: readonly DeviceRule[],
  {
    type,
    major,
    minor,
  }: { readonly type: "b" | "c"; readonly major?: number | undefined; readonly minor?: number | undefined },
): boolean {
  const decisive = rules.findLast(
    (rule) =>
      (rule.type === "a" || rule.type === type) &&
      (rule.major === undefined || rule.major === major) &&
      (rule.minor === undefined || rule.minor === minor) &&
      /[rw]/.test(rule.access),
  );
  return decisive?.allow ?? true;
}

/** The v1 file and the line for one rule. */
export function deviceLine({ allow, type, major, minor, access }: DeviceRule): { file: string; line: string } {
  const file = allow ? "devices.allow" : "devices.deny";
  // "a" takes no numbers and no access: it replaces all rules.
  if (type === "a" && major === undefined && minor === undefined) return { file, line: "a" };
  return { file, line: `${type} ${major ?? "*"}:${minor ?? "*"} ${access}` };
}

const BPF_PROG_LOAD = 5;
const BPF_PROG_ATTACH = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE = 15;
const BPF_CGROUP_DEVICE = 6;
const BPF_F_ALLOW_MULTI = 2;
const accessBits: Readonly<Record<string, number>> = { m: 1, r: 2, w: 4 };

/**
 * The rules as an eBPF program: the last rule that matches decides, so they are tried from the last to the first.
 *
 * The context is struct bpf_cgroup_dev_ctx: { u32 access << 16 | type; u32 major; u32 minor }.
 */
export function deviceProgram(rules: readonly DeviceRule[]): Buffer {
  const code: Buffer[] = [];
  const emit = (op: number, registers: number, offset: number, immediate: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt8(op, 0);
    bytes.writeUInt8(registers, 1);
    bytes.writeInt16LE(offset, 2);
    bytes.writeInt32LE(immediate | 0, 4);
    code.push(bytes);
  };
  const [load32, and32, rsh32, mov32, movRegister32, jumpUnequal, jumpEqual, jumpUnequalRegister, exit] = [
    0x61, 0x54, 0x74, 0xb4, 0xbc, 0x55, 0x15, 0x5d, 0x95,
  ] as const;
  const register = (destination: number, source = 0) => destination | (source << 4);
  emit(load32, register(2, 1), 0, 0); // r2 = type
  emit(and32, register(2), 0, 0xffff);
  emit(load32, register(3, 1), 0, 0); // r3 = access
  emit(rsh32, register(3), 0, 16);
  emit(load32, register(4, 1), 4, 0); // r4 = major
  emit(load32, register(5, 1), 8, 0); // r5 = minor
  for (const { allow, type, major, minor, access } of rules.toReversed()) {
    const bits = access.split("").reduce((sum, letter) => sum | (accessBits[letter] ?? 0), 0);
    const checks: (readonly [number, number, number])[] = [];
    if (type !== "a") checks.push([jumpUnequal, register(2), type === "b" ? 1 : 2]);
    // All of what is asked for must be in an allowing rule; a denying one takes any of it. Jumps are patched below.
    if (major !== undefined) checks.push([jumpUnequal, register(4), major]);
    if (minor !== undefined) checks.push([jumpUnequal, register(5), minor]);
    const accessLength = bits === 7 ? 0 : 3;
    const length = checks.length + accessLength + 2;
    let at = 0;
    for (const [op, registers, immediate] of checks) emit(op, registers, length - ++at, immediate);
    if (accessLength > 0) {
      emit(movRegister32, register(1, 3), 0, 0);
      emit(and32, register(1), 0, bits);
      at += 3;
      if (allow) emit(jumpUnequalRegister, register(1, 3), length - at, 0);
      else emit(jumpEqual, register(1), length - at, 0); // none of it: if r1 == 0 goto next
    }
    emit(mov32, register(0), 0, allow ? 1 : 0);
    emit(exit, 0, 0, 0);
    // Decides everything: what came before it never does, and the verifier refuses instructions that nothing reaches.
    if (length === 2) return Buffer.concat(code);
  }
  emit(mov32, register(0), 0, 0);
  emit(exit, 0, 0, 0);
  return Buffer.concat(code);
}

/** Operations that load the program and attach it to a cgroup of the v2 hierarchy. */
export function loadDeviceFilter(rules: readonly DeviceRule[], cgroup: string): Operation[] {
  const code = deviceProgram(rules);
  const licence = Buffer.from("Apache-2.0\0");
  const load = Buffer.alloc(120); // union bpf_attr
  load.writeUInt32LE(BPF_PROG_TYPE_CGROUP_DEVICE, 0);
  load.writeUInt32LE(code.length / 8, 4);
  const attach = Buffer.alloc(120);
  attach.writeUInt32LE(BPF_CGROUP_DEVICE, 8);
  attach.writeUInt32LE(BPF_F_ALLOW_MULTI, 12);
  return [
    { memory: "deviceFilter", size: code.length, bytes: code },
    { memory: "deviceFilterLicence", size: licence.length, bytes: licence },
    {
      memory: "deviceFilterLoad",
      size: load.length,
      bytes: load,
      pointers: [
        { at: 8, to: "deviceFilter" },
        { at: 16, to: "deviceFilterLicence" },
      ],
    },
    { memory: "deviceFilterAttach", size: attach.length, bytes: attach },
    {
      name: `open cgroup "${cgroup}"`,
      call: "openat",
      args: [AT_FDCWD, { text: cgroup }, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0],
      store: "deviceFilterAttach",
    },
    {
      name: "load the device filter",
      call: "bpf",
      args: [BPF_PROG_LOAD, { addressOf: "deviceFilterLoad" }, load.length],
      store: { memory: "deviceFilterAttach", offset: 4 },
    },
    {
      name: `attach the device filter to cgroup "${cgroup}"`,
      call: "bpf",
      args: [BPF_PROG_ATTACH, { addressOf: "deviceFilterAttach" }, attach.length],
    },
    { name: "close the device filter", call: "close", args: [{ load: "deviceFilterAttach", offset: 4 }] },
    { name: `close cgroup "${cgroup}"`, call: "close", args: [{ load: "deviceFilterAttach" }] },
  ];
}
