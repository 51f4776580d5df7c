/**
 * Seccomp: which system calls a container may make.
 *
 * A step gets a profile, compiled from the table in seccomp-profile.ts; an OCI configuration brings its own rules, see
 * seccomp-oci.ts. Both become a `SeccompFilter`, and `loadSeccomp` the operations that put it in force.
 */
import { instructionCount, printBpf } from "./bpf.ts";
import type { Operation } from "./program.ts";
import { abis, X32_SYSCALL_BIT } from "./seccomp-abi.ts";
import {
  type Answer,
  type Clause,
  type Comparison,
  compileRules,
  type Decision,
  type FilterRules,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_ERRNO,
  SECCOMP_RET_KILL_PROCESS,
  SECCOMP_RET_KILL_THREAD,
  SECCOMP_RET_LOG,
  SECCOMP_RET_TRACE,
  SECCOMP_RET_TRAP,
  SECCOMP_RET_USER_NOTIF,
} from "./seccomp-compile.ts";
import { profileRules, type SeccompProfile } from "./seccomp-profile.ts";
import type { Architecture } from "./syscall-table.ts";

export type { SeccompProfile };

const SECCOMP_SET_MODE_FILTER = 1;
/** Lets the threads of one process load a filter together. */
export const SECCOMP_FILTER_FLAG_TSYNC = 1;
/** Every answer but "allow" is logged. */
export const SECCOMP_FILTER_FLAG_LOG = 2;
/** Without it, kernels before 5.16 also turn on a slow Spectre mitigation, Speculative Store Bypass Disable. */
export const SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4;
/** The call that loads the filter answers with a descriptor for whoever answers notified calls. */
export const SECCOMP_FILTER_FLAG_NEW_LISTENER = 8;
/** TSYNC's failure is an errno, not a thread's id that could be taken for a listener. */
export const SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 16;
/** A notified call whose notification has been received waits for the answer through all signals but deadly ones. */
export const SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32;

export interface SeccompFilter {
  /** The instructions, an array of `struct sock_filter`. */
  readonly program: Uint8Array;
  /** SECCOMP_FILTER_FLAG_ values to load it with. */
  readonly flags: number;
  /** Somebody has to answer some calls; loading it gives the descriptor to do that with. @default false */
  readonly notifies?: boolean;
  /** What it decides, call by call, and its instructions. */
  describe(): string;
}

const compiledProfiles = new Map<string, SeccompFilter>();

/** The filter of a profile; compiled once. */
export function seccompProfile(profile: SeccompProfile, architecture: Architecture): SeccompFilter {
  const key = `${profile} ${architecture}`;
  const known = compiledProfiles.get(key);
  if (known !== undefined) return known;
  const rules = profileRules(profile, architecture);
  const filter = seccompFilter(`Seccomp profile ${profile}`, rules, SECCOMP_FILTER_FLAG_SPEC_ALLOW);
  compiledProfiles.set(key, filter);
  return filter;
}

/** Compiles rules into a filter. @throws {RangeError} If it would be longer than the kernel takes. */
export function seccompFilter(name: string, rules: FilterRules, flags: number): SeccompFilter {
  const program = compileRules(rules);
  return { program, flags, describe: () => `${name}: ${describe(rules, program)}` };
}

/**
 * Puts a filter in force for the process that runs these operations and all its descendants.
 *
 * The kernel demands no_new_privs, or CAP_SYS_ADMIN in the process's user namespace: without no_new_privs it is loaded
 * before the credentials change. Whatever the process does afterwards up to its `execve` must pass the filter. @see seccomp(2)
 */
export function loadSeccomp({ program, flags }: SeccompFilter): Operation[] {
  const sockFprog = Buffer.alloc(16); // { u16 len; pointer }
  sockFprog.writeUInt16LE(instructionCount(program), 0);
  return [
    { memory: "seccompFilter", size: program.length, bytes: program },
    { memory: "seccompProgram", size: 16, bytes: sockFprog, pointers: [{ at: 8, to: "seccompFilter" }] },
    {
      name: "load the seccomp filter",
      call: "seccomp",
      args: [SECCOMP_SET_MODE_FILTER, flags, { addressOf: "seccompProgram" }],
    },
  ];
}

function describe(rules: FilterRules, program: Uint8Array): string {
  const architectures = rules.architectures.flatMap(({ auditArch, calls, unlisted }) => {
    const names = new Map<number, string>();
    for (const abi of Object.values(abis)) {
      if (abi.auditArch !== auditArch) continue;
      for (const [name, number] of abi.numbers) names.set(number, abi.name === "x32" ? `x32:${name}` : name);
    }
    const byDecision = new Map<string, string[]>();
    for (const [number, decision] of [...calls].toSorted(([a], [b]) => a - b)) {
      const text = describeDecision(decision);
      byDecision.set(text, [...(byDecision.get(text) ?? []), names.get(number) ?? `call ${number}`]);
    }
    return [
      architectureNames(auditArch, [...calls.keys()]),
      ...[...byDecision].map(([text, calls]) => `  ${text}: ${calls.join(" ")}`),
      ...unlisted.map(({ from, answer }) => `  ${describeAnswer(answer)}: all others from ${hex(from)} on`),
    ];
  });
  const listing = printBpf(program, {
    value: describeAnswer,
    offset: (offset) => {
      if (offset === 0) return "number";
      if (offset === 4) return "architecture";
      const half = offset % 8 === 0 ? "low" : "high";
      return `argument ${(offset - 16 - (offset % 8)) / 8} ${half}`;
    },
  });
  return `${instructionCount(program)} instructions, ${program.length} bytes
${architectures.join("\n")}
other architectures: ${describeAnswer(rules.otherArchitectures)}

${listing}`;
}

function architectureNames(auditArch: number, numbers: readonly number[]): string {
  const named = Object.values(abis).filter((abi) => abi.auditArch === auditArch);
  const used = named.filter(({ name }) => name !== "x32" || numbers.some((number) => number >= X32_SYSCALL_BIT));
  return used.map(({ name }) => name).join(" and ");
}

function describeDecision({ clauses, otherwise }: Decision): string {
  return [...clauses.map(describeClause), describeAnswer(otherwise)].join("; ");
}

function describeClause({ all, answer }: Clause): string {
  return `${describeAnswer(answer)} if ${all.map(describeComparison).join(" and ")}`;
}

function describeComparison({ index, operator, value, mask }: Comparison): string {
  const signs = { NE: "!=", LT: "<", LE: "<=", EQ: "==", GE: ">=", GT: ">", MASKED_EQ: "==" } as const;
  const argument = `argument ${index}`;
  return `${mask === undefined ? argument : `(${argument} & ${hex(mask)})`} ${signs[operator]} ${hex(value)}`;
}

const hex = (value: number | bigint) => `0x${value.toString(16)}`;

/** A SECCOMP_RET_ value in words: `allow`, `errno 1`, `kill process`. */
export function describeAnswer(answer: Answer): string {
  const data = answer & 0xffff;
  switch ((answer & 0xffff_0000) >>> 0) {
    case SECCOMP_RET_ALLOW:
      return "allow";
    case SECCOMP_RET_ERRNO:
      return `errno ${data}`;
    case SECCOMP_RET_KILL_PROCESS:
      return "kill process";
    case SECCOMP_RET_KILL_THREAD:
      return "kill thread";
    case SECCOMP_RET_LOG:
      return "log";
    case SECCOMP_RET_TRACE:
      return `trace ${data}`;
    case SECCOMP_RET_TRAP:
      return "trap";
    case SECCOMP_RET_USER_NOTIF:
      return "ask the agent";
    default:
      return hex(answer);
  }
}
