/**
 * The `linux.seccomp` object of an OCI runtime-spec configuration, with the meaning that libseccomp gives it in runc and
 * crun. @see https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp
 */
import { EPERM, ENOSYS } from "./linux.ts";
import {
  SECCOMP_FILTER_FLAG_LOG,
  SECCOMP_FILTER_FLAG_NEW_LISTENER,
  SECCOMP_FILTER_FLAG_SPEC_ALLOW,
  SECCOMP_FILTER_FLAG_TSYNC,
  SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
  SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
  type SeccompFilter,
  seccompFilter,
} from "./seccomp.ts";
import { type Abi, type AbiName, abis, multiplexed, X32_SYSCALL_BIT } from "./seccomp-abi.ts";
import {
  type Answer,
  type ArchitectureRules,
  type Clause,
  type Comparison,
  type Decision,
  SECCOMP_RET_ALLOW,
  SECCOMP_RET_ERRNO,
  SECCOMP_RET_KILL_PROCESS,
  SECCOMP_RET_KILL_THREAD,
  SECCOMP_RET_LOG,
  SECCOMP_RET_TRACE,
  SECCOMP_RET_TRAP,
  SECCOMP_RET_USER_NOTIF,
} from "./seccomp-compile.ts";
import type { Architecture } from "./syscall-table.ts";

/** `linux.seccomp`; fields as the specification spells them. */
export interface OciSeccomp {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number;
  readonly architectures?: readonly string[];
  readonly flags?: readonly string[];
  readonly listenerPath?: string;
  readonly listenerMetadata?: string;
  readonly syscalls?: readonly OciSyscall[];
}

export interface OciSyscall {
  readonly names: readonly string[];
  readonly action: string;
  readonly errnoRet?: number;
  readonly args?: readonly OciArgument[];
}

export interface OciArgument {
  readonly index: number;
  /** A u64: what a JavaScript number cannot say exactly must be a bigint. */
  readonly value: number | bigint;
  readonly valueTwo?: number | bigint;
  readonly op: string;
}

/** What the configuration asks for cannot be done; the message names it. */
export class SeccompConfigError extends Error {
  override readonly name = "SeccompConfigError";
}

export interface OciSeccompFilter extends SeccompFilter {
  /** Names in the configuration that no architecture of it has; as in runc and crun, they are skipped. */
  readonly unknownNames: readonly string[];
}

/**
 * Compiles a configuration for a kernel of the given architecture.
 *
 * Rules for one call: one without arguments beats all others, whatever their order; else they are tried from the higher
 * argument to the lower, from the narrower value to the wider. Arguments of one rule must all match, but an index that
 * occurs twice makes each argument a rule of its own. A rule that says what `defaultAction` says is skipped.
 *
 * @param options.newCallsAnswerEnosys Calls with higher numbers than all that the configuration names answer ENOSYS, unless
 * the default lets calls through: what a C library newer than the configuration needs. runc does so, crun does not.
 * @default true
 * @throws {SeccompConfigError} If it names an action, operator, architecture or flag that is unknown or not supported,
 * or two rules contradict each other.
 */
export function ociSeccomp(
  config: OciSeccomp,
  architecture: Architecture,
  options: { readonly newCallsAnswerEnosys?: boolean } = {},
): OciSeccompFilter {
  const defaultAnswer = parseAction(config.defaultAction, config.defaultErrnoRet, "defaultAction");
  const rules = (config.syscalls ?? []).flatMap((syscall, i) => parseSyscall(syscall, `syscalls[${i}]`));
  const chosen = parseArchitectures(config.architectures ?? [], architecture);
  const notifies = [defaultAnswer, ...rules.map(({ clause }) => clause.answer)].includes(SECCOMP_RET_USER_NOTIF);
  const flags = flagsToLoad(parseFlags(config.flags), notifies);

  const groups = new Map<number, Abi[]>();
  for (const abi of chosen) groups.set(abi.auditArch, [...(groups.get(abi.auditArch) ?? []), abi]);
  const enosys = (options.newCallsAnswerEnosys ?? true) && !letsThrough(defaultAnswer);
  const architectures = [...groups].map(([auditArch, group]): ArchitectureRules => {
    const calls = new Map<number, Decision>();
    const unlisted: { from: number; answer: Answer }[] = [];
    for (const abi of group.toSorted((a, b) => numberBase(a) - numberBase(b))) {
      for (const [number, decision] of decisions(rules, abi, defaultAnswer)) calls.set(number, decision);
      unlisted.push({ from: numberBase(abi), answer: defaultAnswer });
      const last = highestNumber(rules, abi);
      if (enosys && last !== undefined) unlisted.push({ from: last + 1, answer: SECCOMP_RET_ERRNO | ENOSYS });
    }
    // libseccomp's answer to x32 calls if only x86-64 is named; -1 is what a tracer sets to skip a call.
    if (group.length === 1 && group[0]?.name === "x64") {
      unlisted.push(
        { from: X32_SYSCALL_BIT, answer: foreign },
        { from: 0xffff_ffff, answer: unlisted.at(-1)?.answer ?? 0 },
      );
    }
    if (group.length === 1 && group[0]?.name === "x32") unlisted.unshift({ from: 0, answer: foreign });
    return { auditArch, calls, unlisted };
  });
  const filter = seccompFilter("Seccomp filter", { architectures, otherArchitectures: foreign }, flags);
  const names = new Set(rules.map(({ name }) => name));
  const unknownNames = [...names].filter((name) => !chosen.some((abi) => numbersOf(name, abi).length > 0));
  return { ...filter, notifies, unknownNames };
}

/** libseccomp's default for architectures that were not added. */
const foreign = SECCOMP_RET_KILL_THREAD;

const numberBase = (abi: Abi) => (abi.name === "x32" ? X32_SYSCALL_BIT : 0);

function letsThrough(answer: Answer): boolean {
  const action = (answer & 0xffff_0000) >>> 0;
  return [SECCOMP_RET_ALLOW, SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_USER_NOTIF].includes(action);
}

interface Rule {
  readonly name: string;
  readonly clause: Clause;
}

function parseSyscall(syscall: OciSyscall, where: string): Rule[] {
  const answer = parseAction(syscall.action, syscall.errnoRet, where);
  const comparisons = (syscall.args ?? []).map((argument, i) => parseArgument(argument, `${where}.args[${i}]`));
  const indexes = new Set(comparisons.map(({ index }) => index));
  const alternatives =
    indexes.size < comparisons.length ? comparisons.map((comparison) => [comparison]) : [comparisons];
  return syscall.names.flatMap((name) => alternatives.map((all) => ({ name, clause: { all, answer } })));
}

const actions: Readonly<Record<string, Answer>> = {
  SCMP_ACT_ALLOW: SECCOMP_RET_ALLOW,
  SCMP_ACT_ERRNO: SECCOMP_RET_ERRNO,
  SCMP_ACT_KILL: SECCOMP_RET_KILL_THREAD,
  SCMP_ACT_KILL_PROCESS: SECCOMP_RET_KILL_PROCESS,
  SCMP_ACT_KILL_THREAD: SECCOMP_RET_KILL_THREAD,
  SCMP_ACT_LOG: SECCOMP_RET_LOG,
  SCMP_ACT_NOTIFY: SECCOMP_RET_USER_NOTIF,
  SCMP_ACT_TRACE: SECCOMP_RET_TRACE,
  SCMP_ACT_TRAP: SECCOMP_RET_TRAP,
};

const maxErrno = 4095; // MAX_ERRNO: the kernel answers no higher one

function parseAction(action: string, errnoRet: number | undefined, where: string): Answer {
  const answer = Object.hasOwn(actions, action) ? actions[action] : undefined;
  if (answer === undefined)
    throw refused(where, `the action "${action}" is not one of ${Object.keys(actions).join(", ")}`);
  const takesData = answer === SECCOMP_RET_ERRNO || answer === SECCOMP_RET_TRACE;
  if (errnoRet === undefined) return takesData ? (answer | EPERM) >>> 0 : answer;
  if (!takesData) throw refused(where, `an errno was given for the action ${action}, which has none`);
  const most = answer === SECCOMP_RET_ERRNO ? maxErrno : 0xffff;
  if (!Number.isInteger(errnoRet) || errnoRet < 0 || errnoRet > most) {
    throw refused(where, `the errno ${errnoRet} is not an integer between 0 and ${most}`);
  }
  return (answer | errnoRet) >>> 0;
}

const operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] as const;

function parseArgument({ index, value, valueTwo, op }: OciArgument, where: string): Comparison {
  if (!Number.isInteger(index) || index < 0 || index > 5) {
    throw refused(where, `the argument index ${index} is not between 0 and 5`);
  }
  const operator = operators.find((name) => op === `SCMP_CMP_${name}`);
  if (operator === undefined)
    throw refused(where, `the operator "${op}" is not one of SCMP_CMP_${operators.join(", SCMP_CMP_")}`);
  const first = parseU64(value, `${where}.value`);
  if (operator !== "MASKED_EQ") return { index, operator, value: first };
  const second = parseU64(valueTwo ?? 0, `${where}.valueTwo`);
  return { index, operator, mask: first, value: second & first };
}

function parseU64(value: number | bigint, where: string): bigint {
  if (typeof value === "number" && !Number.isSafeInteger(value)) {
    throw refused(where, `the value ${value} is not exact; it must be an integer, above 2^53 a bigint`);
  }
  if (value < 0 || value > 0xffff_ffff_ffff_ffffn)
    throw refused(where, `the value ${value} is not an unsigned 64-bit integer`);
  return BigInt(value);
}

const architectureNames: Readonly<Record<string, AbiName>> = {
  SCMP_ARCH_X86_64: "x64",
  SCMP_ARCH_X86: "x86",
  SCMP_ARCH_X32: "x32",
  SCMP_ARCH_AARCH64: "arm64",
  SCMP_ARCH_ARM: "arm",
};

/** The kernel's own architecture is always one of them. */
function parseArchitectures(names: readonly string[], own: Architecture): readonly Abi[] {
  const chosen = new Set<Abi>([abis[own]]);
  for (const name of names) {
    const abi = Object.hasOwn(architectureNames, name) ? architectureNames[name] : undefined;
    if (abi === undefined) {
      throw refused("architectures", `"${name}" is not one of ${Object.keys(architectureNames).join(", ")}`);
    }
    chosen.add(abis[abi]);
  }
  return [...chosen];
}

const flagValues: Readonly<Record<string, number>> = {
  SECCOMP_FILTER_FLAG_TSYNC: SECCOMP_FILTER_FLAG_TSYNC,
  SECCOMP_FILTER_FLAG_LOG: SECCOMP_FILTER_FLAG_LOG,
  SECCOMP_FILTER_FLAG_SPEC_ALLOW: SECCOMP_FILTER_FLAG_SPEC_ALLOW,
  SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
};

/** Without a word about flags SPEC_ALLOW, as runc and crun do. */
function parseFlags(flags: readonly string[] | undefined): number {
  if (flags === undefined) return SECCOMP_FILTER_FLAG_SPEC_ALLOW;
  return flags.reduce((all, flag) => {
    const value = Object.hasOwn(flagValues, flag) ? flagValues[flag] : undefined;
    if (value === undefined) throw refused("flags", `"${flag}" is not one of ${Object.keys(flagValues).join(", ")}`);
    return all | value;
  }, 0);
}

/** The kernel takes WAIT_KILLABLE_RECV only with a listener, and TSYNC with one only if both can be told apart. */
function flagsToLoad(flags: number, notifies: boolean): number {
  if (!notifies) return flags & ~SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  const tsync = (flags & SECCOMP_FILTER_FLAG_TSYNC) === 0 ? 0 : SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
  return flags | SECCOMP_FILTER_FLAG_NEW_LISTENER | tsync;
}

function refused(where: string, reason: string): SeccompConfigError {
  return new SeccompConfigError(`Cannot compile linux.seccomp: ${where}: ${reason}`);
}

/** A call's numbers; on i386 some have two. The second has its own number as first argument, and none of the call's. */
function numbersOf(name: string, abi: Abi): { readonly number: number; readonly first?: bigint }[] {
  const numbers: { number: number; first?: bigint }[] = [];
  const direct = abi.numbers.get(name);
  if (direct !== undefined) numbers.push({ number: direct });
  const within = abi.name === "x86" ? multiplexed(name) : undefined;
  const number = within && abi.numbers.get(within.call);
  if (number !== undefined) numbers.push({ number, first: BigInt(within?.number ?? 0) });
  return numbers;
}

function highestNumber(rules: readonly Rule[], abi: Abi): number | undefined {
  const numbers = rules.flatMap(({ name }) => abi.numbers.get(name) ?? []);
  return numbers.length === 0 ? undefined : numbers.reduce((a, b) => Math.max(a, b));
}

function decisions(rules: readonly Rule[], abi: Abi, defaultAnswer: Answer): Map<number, Decision> {
  const clauses = new Map<number, Clause[]>();
  for (const { name, clause } of rules) {
    if (clause.answer === defaultAnswer) continue;
    for (const { number, first } of numbersOf(name, abi)) {
      const all = clause.all
        .map((comparison) => narrowed(comparison, abi))
        .filter((comparison) => comparison.mask !== 0n);
      if (first !== undefined) {
        const own: Comparison = { index: 0, operator: "EQ", value: first };
        all.splice(0, all.length, own, ...clause.all.filter(({ index }) => index !== 0));
      }
      const sorted = all.toSorted((a, b) => a.index - b.index);
      clauses.set(number, [...(clauses.get(number) ?? []), { all: sorted, answer: clause.answer }]);
    }
  }
  return new Map([...clauses].map(([number, list]) => [number, decide(list, { abi, number, defaultAnswer })] as const));
}

/** 32-bit ABIs compare the low half of every constant. */
function narrowed(comparison: Comparison, abi: Abi): Comparison {
  if (abi.argumentBits === 64) return comparison;
  const low = (value: bigint) => value & 0xffff_ffffn;
  const { mask } = comparison;
  return { ...comparison, value: low(comparison.value), ...(mask === undefined ? {} : { mask: low(mask) }) };
}

function decide(
  clauses: readonly Clause[],
  call: { readonly abi: Abi; readonly number: number; readonly defaultAnswer: Answer },
): Decision {
  const { argumentBits } = call.abi;
  const unconditional = clauses.find(({ all }) => all.length === 0);
  if (unconditional !== undefined) return { clauses: [], otherwise: unconditional.answer, argumentBits };
  const conditions = new Map<string, Answer>();
  for (const { all, answer } of clauses) {
    const condition = all
      .map(({ index, operator, value, mask }) => `${index} ${operator} ${value} ${mask}`)
      .join(" and ");
    if ((conditions.get(condition) ?? answer) !== answer) {
      const name = [...call.abi.numbers].find(([, number]) => number === call.number)?.[0] ?? `${call.number}`;
      throw refused("syscalls", `two rules for "${name}" with the same arguments have different actions`);
    }
    conditions.set(condition, answer);
  }
  return { clauses: clauses.toSorted(compareClauses), otherwise: call.defaultAnswer, argumentBits };
}

/** libseccomp's order (_db_chain_lt): what it tries first comes first, what it holds for equal stays as it was added. */
function compareClauses(a: Clause, b: Clause): number {
  for (let i = 0; ; i++) {
    const [left, right] = [a.all[i], b.all[i]];
    if (left === undefined || right === undefined) return (left ? 1 : 0) - (right ? 1 : 0);
    const order = compareComparisons(left, right);
    if (order !== 0) return order;
  }
}

const precedence: Readonly<Record<Comparison["operator"], number>> = {
  MASKED_EQ: 0,
  EQ: 0,
  NE: 0,
  LE: 1,
  LT: 1,
  GE: 2,
  GT: 2,
};

function compareComparisons(a: Comparison, b: Comparison): number {
  if (a.index !== b.index) return b.index - a.index;
  const classes = precedence[a.operator] - precedence[b.operator];
  if (classes !== 0) return classes;
  if (a.value === b.value) return 0;
  const ascending = a.value < b.value ? -1 : 1;
  return precedence[a.operator] === precedence.LE ? ascending : -ascending;
}
