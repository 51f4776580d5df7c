/**
 * The table that the walker executes: fixed-size records in memory, little-endian.
 *
 * | offset | type | meaning |
 * |---|---|---|
 * | 0 | u16 | operation: 0 system call, 1 decimal, 2 jump if not equal, 3 fail |
 * | 2 | u16 | bit i set: argument i is the address of a u32 to load, not the value |
 * | 4 | u32 | system call number |
 * | 8 | u64 × 6 | arguments |
 * | 56 | u64 | address of a u32 where the result is stored, or 0 |
 * | 64 | i64 | bytes to jump by: when the result is positive (system call), when unequal (jump if not equal), or 0 |
 * | 72 | u16 × 4 | errnos that are tolerated: go on with the next record |
 */
export const recordBytes = 80;

export const operationCode = {
  /** Arguments 0–5, then store, jump, tolerated errnos. */
  syscall: 0,
  /** Writes argument 0 in decimal so that its last digit stands just before address argument 1. */
  decimal: 1,
  /** Jumps if argument 0 differs from argument 1. */
  jumpIfNotEqual: 2,
  /** Fails with errno argument 0. */
  fail: 3,
} as const;

/** Where things are in the program's memory, and the descriptor for messages. */
export interface WalkerLayout {
  /** The first record. */
  readonly tableAddress: number;
  /** 48 bytes for the loaded arguments. */
  readonly scratchAddress: number;
  /** 16 bytes: { u32 kind, already `fail`; u32 errno; u64 address of the record }. */
  readonly failMessageAddress: number;
  readonly statusFd: number;
}
