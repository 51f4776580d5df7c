/**
 * Compiles what is decided for each system call into a seccomp filter.
 *
 * The filter finds a call's number by a balanced search among ranges of numbers with one decision. Before a call that is
 * let through without a look at its arguments it reads nothing but architecture and number, so kernels from 5.11 on run it
 * once for each such number, when it is loaded, and never again (seccomp_cache_prepare in kernel/seccomp.c).
 */
import { BpfAssembler, type Label } from "./bpf.ts";

// What a filter answers: linux/seccomp.h. The low 16 bits are an errno, or data for a tracer.
export const SECCOMP_RET_KILL_PROCESS = 0x8000_0000;
export const SECCOMP_RET_KILL_THREAD = 0;
export const SECCOMP_RET_TRAP = 0x0003_0000;
export const SECCOMP_RET_ERRNO = 0x0005_0000;
export const SECCOMP_RET_USER_NOTIF = 0x7fc0_0000;
export const SECCOMP_RET_TRACE = 0x7ff0_0000;
export const SECCOMP_RET_LOG = 0x7ffc_0000;
export const SECCOMP_RET_ALLOW = 0x7fff_0000;

// struct seccomp_data { i32 nr; u32 arch; u64 instruction_pointer; u64 args[6]; }, little-endian.
const numberOffset = 0;
const architectureOffset = 4;
const argumentOffset = (index: number) => 16 + 8 * index;

/** A SECCOMP_RET_ value with its data. */
export type Answer = number;

/** A comparison of one argument, unsigned. `MASKED_EQ`: the bits of `mask` are equal to `value`. */
export interface Comparison {
  readonly index: number;
  readonly operator: "NE" | "LT" | "LE" | "EQ" | "GE" | "GT" | "MASKED_EQ";
  readonly value: bigint;
  readonly mask?: bigint;
}

/** An answer to calls with these arguments: all comparisons hold. */
export interface Clause {
  readonly all: readonly Comparison[];
  readonly answer: Answer;
}

/** What a call is answered: by the first clause that holds, else as `otherwise` says. */
export interface Decision {
  readonly clauses: readonly Clause[];
  readonly otherwise: Answer;
  /** The width of the ABI's arguments. Of wider constants only the low half counts. */
  readonly argumentBits: 32 | 64;
}

/** The decisions for the numbers of one AUDIT_ARCH; x32 calls are among those of x86-64. */
export interface ArchitectureRules {
  readonly auditArch: number;
  readonly calls: ReadonlyMap<number, Decision>;
  /** Answers to all numbers from this one on, up to the next. The first starts at 0. */
  readonly unlisted: readonly { readonly from: number; readonly answer: Answer }[];
  /** How often a number is called, against 1 for the others: frequent ones are found in fewer steps. */
  readonly frequency?: ReadonlyMap<number, number>;
}

export interface FilterRules {
  /** The kernel's own architecture first. */
  readonly architectures: readonly ArchitectureRules[];
  readonly otherArchitectures: Answer;
}

/**
 * Compiles rules to an array of `struct sock_filter`.
 *
 * @throws {RangeError} If the filter would be longer than the kernel takes.
 */
export function compileRules(rules: FilterRules): Uint8Array {
  const assembler = new BpfAssembler();
  let next = assembler.ret(rules.otherArchitectures);
  for (const architecture of rules.architectures.toReversed()) {
    const search = searchNumber(assembler, architecture);
    next = assembler.branch("==", architecture.auditArch, { yes: search, no: next });
  }
  return assembler.assemble(assembler.load(architectureOffset, next));
}

/** Numbers from `from` to the next range's, with one decision. */
interface Range {
  readonly from: number;
  readonly decision: Decision;
  readonly key: string;
  weight: number;
}

function searchNumber(assembler: BpfAssembler, rules: ArchitectureRules): Label {
  const ranges = mergedRanges(rules);
  // Bottom-up and from right to left, so that what is found next to each other also lies so.
  const search = (first: number, last: number): Label => {
    const [low, high] = [ranges[first], ranges[last]];
    if (low === undefined || high === undefined) throw new RangeError(`No ranges ${first} to ${last}`);
    if (first === last) return decide(assembler, low.decision);
    const middle = ranges[first + 1];
    if (last === first + 2 && middle !== undefined && low.key === high.key && high.from === middle.from + 1) {
      const no = decide(assembler, low.decision);
      return assembler.branch("==", middle.from, { yes: decide(assembler, middle.decision), no });
    }
    const split = balancedSplit(ranges, first, last);
    const no = search(first, split - 1);
    const yes = search(split, last);
    return assembler.branch(">=", ranges[split]?.from ?? 0, { yes, no });
  };
  return assembler.load(numberOffset, search(0, ranges.length - 1));
}

function mergedRanges(rules: ArchitectureRules): Range[] {
  const starts = new Set<number>(rules.unlisted.map(({ from }) => from));
  for (const number of rules.calls.keys()) {
    starts.add(number);
    if (number < 0xffff_ffff) starts.add(number + 1);
  }
  const unlisted = (number: number): Decision => {
    const answer = rules.unlisted.findLast(({ from }) => from <= number)?.answer;
    if (answer === undefined) throw new Error(`The rules answer nothing to the system call ${number}`);
    return { clauses: [], otherwise: answer, argumentBits: 64 };
  };
  const ranges: Range[] = [];
  for (const from of [...starts].toSorted((a, b) => a - b)) {
    const decision = rules.calls.get(from) ?? unlisted(from);
    const key = decisionKey(decision);
    const weight = rules.frequency?.get(from) ?? 1;
    const previous = ranges.at(-1);
    if (previous?.key === key) previous.weight += weight;
    else ranges.push({ from, decision, key, weight });
  }
  return ranges;
}

function decisionKey({ clauses, otherwise, argumentBits }: Decision): string {
  if (clauses.length === 0) return `${otherwise}`;
  return JSON.stringify([clauses, otherwise, argumentBits], (_, value) =>
    typeof value === "bigint" ? `${value}` : value,
  );
}

/** The first range of the right side, such that both sides are called about as often. */
function balancedSplit(ranges: readonly Range[], first: number, last: number): number {
  const weights = ranges.slice(first, last + 1).map(({ weight }) => weight);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let best = first + 1;
  let leastDifference = Number.POSITIVE_INFINITY;
  let left = 0;
  weights.slice(0, -1).forEach((weight, i) => {
    left += weight;
    const difference = Math.abs(total - 2 * left);
    if (difference < leastDifference) [best, leastDifference] = [first + i + 1, difference];
  });
  return best;
}

function decide(assembler: BpfAssembler, { clauses, otherwise, argumentBits }: Decision): Label {
  let next = assembler.ret(otherwise);
  for (const { all, answer } of clauses.toReversed()) {
    const no = next;
    let yes = assembler.ret(answer);
    for (const comparison of all.toReversed()) yes = compare(assembler, comparison, { yes, no, argumentBits });
    next = yes;
  }
  return next;
}

interface Outcome {
  readonly yes: Label;
  readonly no: Label;
}

/** Compares 64 bits by halves, the low one first where that decides more often. */
function compare(
  assembler: BpfAssembler,
  { index, operator, value, mask }: Comparison,
  { yes, no, argumentBits }: Outcome & { readonly argumentBits: 32 | 64 },
): Label {
  const wide = argumentBits === 64;
  const half = (number: bigint, which: "low" | "high") =>
    Number((which === "low" ? number : number >> 32n) & 0xffff_ffffn);
  const [lowOffset, highOffset] = [argumentOffset(index), argumentOffset(index) + 4];

  const equal = (bits: bigint, outcome: Outcome): Label => {
    const high = { offset: highOffset, value: half(value & bits, "high"), mask: wide ? half(bits, "high") : 0 };
    const low = { offset: lowOffset, value: half(value & bits, "low"), mask: half(bits, "low") };
    const afterLow = equalHalf(assembler, high, outcome);
    return equalHalf(assembler, low, { yes: afterLow, no: outcome.no });
  };
  /** value < argument, or value <= argument. */
  const above = (test: ">" | ">=", outcome: Outcome): Label => {
    const lowTest = assembler.branch(test, half(value, "low"), { ...outcome, holding: { offset: lowOffset } });
    const low = assembler.load(lowOffset, lowTest);
    if (!wide) return low;
    const high = half(value, "high");
    const holding = { offset: highOffset };
    const same = high === 0 ? low : assembler.branch("==", high, { yes: low, no: outcome.no, holding });
    return assembler.load(highOffset, assembler.branch(">", high, { yes: outcome.yes, no: same, holding }));
  };

  const negated = { yes: no, no: yes };
  if (operator === "NE") return equal(allBits, negated);
  if (operator === "EQ" || operator === "MASKED_EQ") return equal(mask ?? allBits, { yes, no });
  const test = operator === "GT" || operator === "LE" ? ">" : ">=";
  return above(test, operator === "LE" || operator === "LT" ? negated : { yes, no });
}

const allBits = 0xffff_ffff_ffff_ffffn;

function equalHalf(
  assembler: BpfAssembler,
  { offset, value, mask }: { readonly offset: number; readonly value: number; readonly mask: number },
  { yes, no }: Outcome,
): Label {
  if (mask === 0) return yes;
  // No bit of the mask is set: one instruction, and the word stays whole for the next clause.
  if (value === 0 && mask !== 0xffff_ffff) {
    return assembler.load(offset, assembler.branch("&", mask, { yes: no, no: yes, holding: { offset } }));
  }
  const test = assembler.branch("==", value, { yes, no, holding: { offset, mask } });
  return assembler.load(offset, test, mask);
}
