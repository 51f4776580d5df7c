import { describe, expect, test } from "vitest";
import { evaluateBpf, instructionCount } from "../../runtime/bpf.ts";
import { compileProgram } from "../../runtime/program.ts";
import { describeAnswer, loadSeccomp, seccompProfile } from "../../runtime/seccomp.ts";
import { abis } from "../../runtime/seccomp-abi.ts";
import { profileTable, type SeccompProfile } from "../../runtime/seccomp-profile.ts";
import { type Architecture, syscallNumbers } from "../../runtime/syscall-table.ts";

const profiles: readonly SeccompProfile[] = ["default", "nested"];
const architectures: readonly Architecture[] = ["x64", "arm64"];
const both = profiles.flatMap((profile) => architectures.map((architecture) => ({ profile, architecture })));

/** What a filter answers, in words. */
function answer(
  program: Uint8Array,
  call: { readonly arch: number; readonly number: number; readonly args?: readonly bigint[] },
): string {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(call.number, 0);
  data.writeUInt32LE(call.arch, 4);
  call.args?.forEach((value, i) => data.writeBigUInt64LE(value, 16 + 8 * i));
  return describeAnswer(evaluateBpf(program, data).value);
}

const words = (text: string) => text.trim().split(/\s+/);
const inWords = { allow: "allow", EPERM: "errno 1", ENOSYS: "errno 38", EAFNOSUPPORT: "errno 97" } as const;

describe("profileTable", () => {
  test.for(profiles)("%s decides every system call that has a number, and each once", (profile) => {
    const listed = profileTable(profile).flatMap(({ calls }) => words(calls));
    const known = new Set([...syscallNumbers("x64").keys(), ...syscallNumbers("arm64").keys()]);
    expect(listed.filter((name, i) => listed.indexOf(name) !== i)).toEqual([]);
    expect([...known].filter((name) => !listed.includes(name))).toEqual([]);
    expect(listed.filter((name) => !known.has(name))).toEqual([]);
  });

  test("what makes a container differs between the profiles, and nothing else", () => {
    const table = (profile: SeccompProfile) =>
      new Map(
        profileTable(profile).flatMap((rule) =>
          words(rule.calls).map((name) => [name, JSON.stringify({ ...rule, calls: 0 })]),
        ),
      );
    const nested = table("nested");
    const differing = [...table("default")].filter(([name, rule]) => nested.get(name) !== rule).map(([name]) => name);
    expect(differing.toSorted()).toEqual(
      words(`clone clone3 fsconfig fsmount fsopen fspick kcmp keyctl mount mount_setattr move_mount open_tree
        open_tree_attr pidfd_getfd pivot_root process_madvise setdomainname sethostname setns umount2 unshare`),
    );
  });
});

describe.for(both)("seccompProfile $profile on $architecture", ({ profile, architecture }) => {
  const { program } = seccompProfile(profile, architecture);
  const { auditArch: arch, numbers } = abis[architecture];
  const rules = new Map(profileTable(profile).flatMap((rule) => words(rule.calls).map((name) => [name, rule])));
  const names = new Map([...numbers].map(([name, number]) => [number, name]));
  const ask = (name: string, ...args: bigint[]) => answer(program, { arch, number: numbers.get(name) ?? -1, args });

  test("answers every number as the table says", () => {
    const wrong: string[] = [];
    for (let number = 0; number < 1100; number++) {
      const name = names.get(number);
      const rule = name === undefined ? undefined : rules.get(name);
      if (rule?.except !== undefined) continue;
      const expected = inWords[rule?.answer ?? "ENOSYS"];
      // Whatever the arguments are.
      for (const args of [[], Array<bigint>(6).fill(0xffff_ffff_ffff_ffffn)]) {
        const found = answer(program, { arch, number, args });
        if (found !== expected) wrong.push(`${name ?? number}: ${found}, not ${expected}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  test("answers each listed value of an argument as the table says, whatever is in its high half", () => {
    const wrong: string[] = [];
    for (const [name, { answer: usual, except }] of rules) {
      if (except === undefined || !numbers.has(name)) continue;
      const { values } = except;
      const bits = Array.from({ length: 32 }, (_, bit) => 2 ** bit);
      const tried = [...bits, ...bits.map((bit) => bit - 1), 0xffff_ffff, ...("anyBitOf" in values ? [] : values)];
      for (const value of tried.flatMap((low) => [BigInt(low), BigInt(low) + (0xdead_beefn << 32n)])) {
        const low = Number(value & 0xffff_ffffn);
        const isException = "anyBitOf" in values ? (low & values.anyBitOf) !== 0 : values.includes(low);
        const args = Array.from({ length: 6 }, (_, i) => (i === except.argument ? value : 0x1234n));
        const found = ask(name, ...args);
        if (found !== inWords[isException ? except.answer : usual]) wrong.push(`${name} with ${value}: ${found}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  test("reads no argument of a call that it lets through in any case: kernels remember its answer then", () => {
    const head = Buffer.alloc(8); // number and architecture, and nothing to read behind them
    for (const [name, rule] of rules) {
      const number = numbers.get(name);
      if (number === undefined || rule.except !== undefined) continue;
      head.writeUInt32LE(number, 0);
      head.writeUInt32LE(arch, 4);
      expect(() => evaluateBpf(program, head), name).not.toThrow();
    }
  });

  test("answers calls that no kernel has ENOSYS", () => {
    for (const number of [470, 600, 1000, 0xffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff]) {
      expect(answer(program, { arch, number })).toBe("errno 38");
    }
  });

  test("lets no 32-bit ABI through", () => {
    for (const abi of [abis.x86, abis.arm, abis.x32]) {
      const expected = abi.auditArch === arch ? "errno 38" : "kill process";
      for (const number of abi.numbers.values()) {
        expect(answer(program, { arch: abi.auditArch, number })).toBe(expected);
      }
    }
    const other = architecture === "x64" ? abis.arm64 : abis.x64;
    expect(answer(program, { arch: other.auditArch, number: 0 })).toBe("kill process");
  });

  test("refuses what has been a way into kernels", () => {
    const refused = words(`io_uring_setup io_uring_enter io_uring_register userfaultfd bpf perf_event_open add_key
      request_key open_by_handle_at init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff
      settimeofday clock_settime quotactl quotactl_fd syslog acct`);
    for (const name of refused) expect(ask(name), name).toBe("errno 1");
  });

  test("is short, and finds the calls whose arguments it looks at in few steps", () => {
    expect(instructionCount(program)).toBeLessThan(128);
    const data = Buffer.alloc(64);
    data.writeUInt32LE(numbers.get("ioctl") ?? 0, 0);
    data.writeUInt32LE(arch, 4);
    expect(evaluateBpf(program, data).steps).toBeLessThan(16);
  });

  test("answers as its profile demands to what makes containers", () => {
    const inNested = profile === "nested" ? "allow" : "errno 1";
    for (const name of words("mount umount2 pivot_root unshare setns fsopen open_tree_attr mount_setattr keyctl")) {
      expect(ask(name), name).toBe(inNested);
    }
    const SIGCHLD = 17n;
    expect(ask("clone", SIGCHLD)).toBe("allow");
    expect(ask("clone", SIGCHLD | 0x1000_0000n)).toBe(inNested); // CLONE_NEWUSER
    expect(ask("clone3")).toBe(profile === "nested" ? "allow" : "errno 38");
  });

  test("opens sockets of the usual families and no others", () => {
    const family = (number: bigint) => ask("socket", number);
    expect([1n, 2n, 10n, 16n, 17n].map(family)).toEqual(Array(5).fill("allow"));
    expect([9n, 15n, 21n, 30n, 38n, 40n, 44n, (1n << 32n) + 38n].map(family)).toEqual(Array(8).fill("errno 97"));
    expect([ask("socketpair", 1n), ask("socketpair", 30n)]).toEqual(["allow", "errno 97"]);
  });
});

test("seccompProfile compiles a profile once", () => {
  expect(seccompProfile("default", "arm64")).toBe(seccompProfile("default", "arm64"));
});

test("describe() says what is decided and how", () => {
  const text = seccompProfile("default", "x64").describe();
  expect(text).toMatch(/^Seccomp profile default: \d+ instructions, \d+ bytes\nx64\n/);
  expect(text).toContain("  allow if (argument 0 & 0x7e020000) == 0x0; errno 1: clone\n");
  expect(text).toContain("  errno 38: all others from 0x0 on\n");
  expect(text).toContain("other architectures: kill process\n");
  expect(text).toContain("   0  load architecture\n   1  if == 0xc000003e goto 2 else ");
});

test("loadSeccomp hands the kernel the filter's length and address", () => {
  const filter = seccompProfile("default", "x64");
  const operations = loadSeccomp(filter);
  const compiled = compileProgram(operations, { architecture: "x64", statusFd: 2 });
  const file = Buffer.from(compiled.file);
  const [load] = operations.slice(-1);
  expect(load).toMatchObject({ call: "seccomp", args: [1, 4, { addressOf: "seccompProgram" }] });
  const at = file.indexOf(filter.program);
  const fprog = at + filter.program.length + ((8 - (filter.program.length % 8)) % 8);
  expect(file.readUInt16LE(fprog)).toBe(instructionCount(filter.program));
  expect(file.readBigUInt64LE(fprog + 8)).toBe(compiled.addressOf("seccompFilter"));
});
