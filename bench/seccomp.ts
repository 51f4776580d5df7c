/**
 * What a seccomp filter costs a system call: none, Slipway's default profile, and one set of rules, Podman's default profile,
 * compiled by libseccomp as crun loads it and by Slipway.
 *
 * A loop in machine code makes one call over and over. `getppid` is let through whatever its arguments are: kernels from
 * 5.11 on remember that and run no filter. The arguments of `personality` are looked at by all of them, and Slipway looks
 * at those of `ioctl`: there the filter runs.
 */
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { evaluateBpf, instructionCount } from "../runtime/bpf.ts";
import { elf } from "../runtime/elf.ts";
import { compileProgram, type Operation } from "../runtime/program.ts";
import { reap } from "../runtime/reaper.ts";
import { loadSeccomp, SECCOMP_FILTER_FLAG_SPEC_ALLOW, type SeccompFilter, seccompProfile } from "../runtime/seccomp.ts";
import { abis } from "../runtime/seccomp-abi.ts";
import { type OciSeccomp, ociSeccomp } from "../runtime/seccomp-oci.ts";
import { architecture, spawnProgram } from "../runtime/syscall.ts";
import { hasLibseccomp, libseccompPrograms } from "./libseccomp.ts";
import { machine, type Summary, summarize, table } from "./stats.ts";

interface Contender {
  readonly name: string;
  readonly filter?: Pick<SeccompFilter, "program" | "flags">;
}

interface Call {
  readonly name: string;
  readonly args: readonly [number, number];
}

const calls: readonly Call[] = [
  { name: "getppid", args: [0, 0] },
  { name: "personality", args: [0xffff_ffff, 0] },
  { name: "ioctl", args: [0xffff_ffff, 0x5401] }, // TCGETS of no descriptor
];
const callsPerRun = 500_000;

export async function benchSeccomp(options: { readonly runs: number; readonly json: boolean }): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "slipway-bench-"));
  try {
    const contenders = listContenders();
    const measured = contenders.flatMap((contender) => [
      { contender, call: undefined, program: program(directory, contender, undefined) },
      ...calls.map((call) => ({ contender, call, program: program(directory, contender, call) })),
    ]);
    const times = new Map(measured.map((one) => [one, [] as number[]]));
    const warmUp = 2;
    for (let run = -warmUp; run < options.runs; run++) {
      for (const one of measured) {
        const ms = await cpuTimeMs(one.program);
        if (run >= 0) times.get(one)?.push(ms);
      }
    }
    const results = measured.map((one) => result(one.contender, one.call, summarize(times.get(one) ?? [])));
    report(results, options.json);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function listContenders(): Contender[] {
  const contenders: Contender[] = [
    { name: "no filter" },
    { name: "slipway, default profile", filter: seccompProfile("default", architecture) },
  ];
  const config = podmanProfile();
  if (config === undefined) return contenders;
  const [theirs] = hasLibseccomp() ? libseccompPrograms([config], architecture) : [];
  if (theirs !== undefined) {
    const filter = { program: theirs, flags: SECCOMP_FILTER_FLAG_SPEC_ALLOW };
    contenders.push({ name: "Podman's profile by libseccomp", filter });
  }
  contenders.push({ name: "Podman's profile by slipway", filter: ociSeccomp(config, architecture) });
  return contenders;
}

/** The profile that Debian's golang-github-containers-common installs, as Podman hands it to crun for its default capabilities. */
function podmanProfile(): OciSeccomp | undefined {
  const path = "/usr/share/containers/seccomp.json";
  if (!existsSync(path)) return undefined;
  interface Condition {
    readonly caps?: readonly string[];
    readonly arches?: readonly string[];
  }
  interface Profile extends OciSeccomp {
    readonly archMap: readonly { readonly architecture: string; readonly subArchitectures?: readonly string[] }[];
    readonly syscalls: readonly (NonNullable<OciSeccomp["syscalls"]>[number] & {
      readonly includes?: Condition;
      readonly excludes?: Condition;
    })[];
  }
  const profile = JSON.parse(readFileSync(path, "utf8")) as Profile;
  const capabilities = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT"
    .split(" ")
    .map((name) => `CAP_${name}`);
  const [ociArchitecture, goArchitecture] =
    architecture === "x64" ? ["SCMP_ARCH_X86_64", "amd64"] : ["SCMP_ARCH_AARCH64", "arm64"];
  const applies = ({ includes, excludes }: Profile["syscalls"][number]): boolean =>
    (includes?.arches?.includes(goArchitecture) ?? true) &&
    (includes?.caps?.every((name) => capabilities.includes(name)) ?? true) &&
    !(excludes?.arches?.includes(goArchitecture) ?? false) &&
    !(excludes?.caps?.some((name) => capabilities.includes(name)) ?? false);
  const others = profile.archMap.find((entry) => entry.architecture === ociArchitecture)?.subArchitectures ?? [];
  return {
    defaultAction: profile.defaultAction,
    ...(profile.defaultErrnoRet === undefined ? {} : { defaultErrnoRet: profile.defaultErrnoRet }),
    architectures: [ociArchitecture, ...others],
    syscalls: profile.syscalls.filter(applies).map(({ names, action, errnoRet, args }) => ({
      names,
      action,
      ...(errnoRet === undefined ? {} : { errnoRet }),
      args: args ?? [],
    })),
  };
}

/** Writes a program that loads the filter and executes the loop; without a call it ends there. */
function program(directory: string, { name, filter }: Contender, call: Call | undefined): string {
  const file = join(directory, `${name} ${call?.name ?? "load"}`.replaceAll(/\W+/g, "-"));
  const loop = `${file}.loop`;
  if (call !== undefined) {
    writeFileSync(loop, loopProgram(call));
    chmodSync(loop, 0o755);
  }
  const end: Operation =
    call === undefined
      ? { name: "end", call: "exit_group", args: [0] }
      : { name: "execute the loop", call: "execve", args: [{ text: loop }, 0, 0] };
  const operations: Operation[] = [
    { name: "set no_new_privs", call: "prctl", args: [38, 1, 0, 0, 0] },
    ...(filter === undefined ? [] : loadSeccomp({ ...filter, describe: () => name })),
    end,
  ];
  writeFileSync(file, compileProgram(operations, { architecture, statusFd: 2 }).file);
  chmodSync(file, 0o755);
  return file;
}

/** An executable that makes one call `callsPerRun` times. */
function loopProgram({ name, args: [first, second] }: Call): Uint8Array {
  const number = abis[architecture].numbers.get(name) ?? 0;
  const exitGroup = abis[architecture].numbers.get("exit_group") ?? 0;
  const code =
    architecture === "x64"
      ? loopX64({ number, first, second, exitGroup })
      : loopArm64({ number, first, second, exitGroup });
  const data = { data: Buffer.alloc(8), dataAddress: 0x1010_0000, dataMemoryBytes: 8 };
  return elf({ architecture, code, codeAddress: 0x1000_0000, ...data });
}

interface Loop {
  readonly number: number;
  readonly first: number;
  readonly second: number;
  readonly exitGroup: number;
}

function loopX64({ number, first, second, exitGroup }: Loop): Uint8Array {
  const u32 = (value: number) => [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
  const start = [0xbb, ...u32(callsPerRun)]; // mov ebx, n
  // mov eax, number; mov edi, first; mov esi, second; syscall; dec ebx
  const body = [0xb8, ...u32(number), 0xbf, ...u32(first), 0xbe, ...u32(second), 0x0f, 0x05, 0xff, 0xcb];
  const again = [0x75, 256 - body.length - 2]; // jnz body
  const end = [0xb8, ...u32(exitGroup), 0x31, 0xff, 0x0f, 0x05]; // exit_group(0)
  return Buffer.from([...start, ...body, ...again, ...end]);
}

function loopArm64({ number, first, second, exitGroup }: Loop): Uint8Array {
  const move = (register: number, value: number) => [
    (0x5280_0000 | ((value & 0xffff) << 5) | register) >>> 0, // movz
    (0x72a0_0000 | ((value >>> 16) << 5) | register) >>> 0, // movk, lsl 16
  ];
  const svc = 0xd400_0001;
  const body = [...move(8, number), ...move(0, first), ...move(1, second), svc, 0x7100_0673]; // subs w19, w19, 1
  const branch = (0x5400_0001 | ((-body.length & 0x7ffff) << 5)) >>> 0; // b.ne body
  const words = [...move(19, callsPerRun), ...body, branch, ...move(8, exitGroup), ...move(0, 0), svc];
  const code = Buffer.alloc(words.length * 4);
  words.forEach((word, i) => code.writeUInt32LE(word, 4 * i));
  return code;
}

/** The processor's time, not the clock's: other processes run beside. */
async function cpuTimeMs(path: string): Promise<number> {
  const { exitCode, cpuTimeMs: ms } = await reap(spawnProgram(path, []));
  if (exitCode !== 0) throw new Error(`Cannot measure "${path}": it ended with ${exitCode}`);
  return ms;
}

interface Result {
  readonly contender: string;
  readonly instructions: number;
  /** Undefined: what it takes to start a process that loads the filter, in ms. */
  readonly call?: string;
  /** Instructions of the filter that one call takes where the kernel remembers no answer. */
  readonly steps?: number;
  readonly unit: "ns" | "ms";
  readonly summary: Summary;
}

function result({ name, filter }: Contender, call: Call | undefined, cpu: Summary): Result {
  const instructions = filter === undefined ? 0 : instructionCount(filter.program);
  if (call === undefined) return { contender: name, instructions, unit: "ms", summary: cpu };
  const perCall = (ms: number) => (ms * 1e6) / callsPerRun;
  const { runs, min, median, p99, max } = cpu;
  return {
    contender: name,
    instructions,
    call: call.name,
    steps: filter === undefined ? 0 : steps(filter.program, call),
    unit: "ns",
    summary: { runs, min: perCall(min), median: perCall(median), p99: perCall(p99), max: perCall(max) },
  };
}

function steps(filter: Uint8Array, { name, args }: Call): number {
  const data = Buffer.alloc(64);
  data.writeUInt32LE(abis[architecture].numbers.get(name) ?? 0, 0);
  data.writeUInt32LE(abis[architecture].auditArch, 4);
  args.forEach((value, i) => data.writeUInt32LE(value, 16 + 8 * i));
  return evaluateBpf(filter, data).steps;
}

function report(results: readonly Result[], json: boolean): void {
  if (json) {
    console.log(JSON.stringify({ benchmark: "seccomp", machine: machine(), callsPerRun, results }));
    return;
  }
  console.log(`One system call under a seccomp filter, CPU time in ns. ${machine()}\n`);
  const rows = results.map(({ contender, instructions, call, steps: taken, unit, summary }) => [
    contender,
    call ?? "start and load",
    ...[summary.min, summary.median, summary.p99].map((value) => `${value.toFixed(unit === "ns" ? 1 : 3)} ${unit}`),
    taken === undefined ? "" : `${taken} of ${instructions}`,
  ]);
  console.log(table(["", "call", "min", "median", "p99", "instructions"], rows));
  for (const call of calls) console.log(compare(results, call.name));
}

/** What Slipway's filter for the same rules adds to a call, beside what libseccomp's does. */
function compare(results: readonly Result[], call: string): string {
  const of = (contender: string) => results.find((one) => one.call === call && one.contender === contender)?.summary;
  const [none, theirs, ours] = ["no filter", "Podman's profile by libseccomp", "Podman's profile by slipway"].map(of);
  if (none === undefined || theirs === undefined || ours === undefined)
    return `${call}: libseccomp is not here: apt-get install python3-seccomp`;
  const added = (which: "min" | "median") => [ours[which] - none[which], theirs[which] - none[which]] as const;
  const shown = (["min", "median"] as const).map((which) => {
    const [own, other] = added(which);
    return `${which} ${own.toFixed(1)} ns of ${other.toFixed(1)} ns (${(own / other).toFixed(2)} ×)`;
  });
  return `${call}: slipway's filter adds, of what libseccomp's adds: ${shown.join(", ")}`;
}
