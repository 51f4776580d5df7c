/** The conversation with a program that sets a container of `slipway oci` up, or a further process in one. */
import { readFileSync } from "node:fs";
import { compileProgram, failMessage, messageBytes, type Operation, recordIndex } from "./program.ts";
import { architecture, close, errnoName, sendDescriptors, trySyscall } from "./syscall.ts";

/** Of those operations that a failure can name, in the order of their records. */
export function operationNames(operations: readonly Operation[]): string[] {
  return operations.flatMap((operation) => ("name" in operation ? [operation.name] : []));
}

/** The conversation with a program that is setting a container up. */
export class ProgramLink {
  readonly file: Uint8Array;
  readonly #names: readonly string[];
  readonly #status: number;
  readonly #go: number;
  readonly #hookOutput: number | undefined;
  readonly #action: string;

  constructor(
    operations: readonly Operation[],
    fds: { readonly statusFd: number; readonly status: number; readonly go: number; readonly hookOutput?: number },
    action = "create the container",
  ) {
    this.#action = action;
    this.file = compileProgram(operations, { architecture, statusFd: fds.statusFd }).file;
    this.#names = operationNames(operations);
    this.#status = fds.status;
    this.#go = fds.go;
    this.#hookOutput = fds.hookOutput;
  }

  /** Waits for a message and returns its value. @throws {Error} If the program fails instead. */
  expect(kind: number): number {
    const message = readMessage(this.#status);
    if (message === undefined) throw new Error("The container's process was killed while it was being set up");
    if (message.kind === failMessage) throw this.#failure(message);
    if (message.kind !== kind) throw new Error(`The container's process said ${message.kind} instead of ${kind}`);
    return message.value;
  }

  /** Waits for the program's execve. @throws {Error} If it fails. */
  expectExecution(): void {
    const message = readMessage(this.#status);
    if (message !== undefined) throw this.#failure(message);
  }

  go(): void {
    // EPIPE: it has failed, and said so.
    trySyscall("write", this.#go, Buffer.from("g"), 1);
  }

  /** Answers with a descriptor, which is closed here. */
  give(fd: number): void {
    try {
      sendDescriptors(this.#go, [fd]);
    } catch (error) {
      // It has failed, and said so.
      if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
    } finally {
      close(fd);
    }
  }

  #failure({ value, address }: Message): Error {
    const name = this.#names[recordIndex(address)] ?? "an operation";
    const said = this.#hookOutput === undefined ? "" : readFileSync(`/proc/self/fd/${this.#hookOutput}`, "utf8").trim();
    return failure(this.#action, { name, errno: value, said: /hook/.test(name) ? said.slice(-1000) : "" });
  }
}

/** What such a program says. */
export interface Message {
  readonly kind: number;
  readonly value: number;
  readonly address: bigint;
}

/** Waits for a message; undefined at the end of them. */
export function readMessage(fd: number): Message | undefined {
  const bytes = Buffer.alloc(messageBytes);
  const length = trySyscall("read", fd, bytes, bytes.length);
  if (length !== messageBytes) return undefined;
  return { kind: bytes.readUInt32LE(0), value: bytes.readUInt32LE(4), address: bytes.readBigUInt64LE(8) };
}

/**
 * Says in words what has failed.
 *
 * @param what The operation's name, its errno, and what a hook has printed.
 */
export function failure(
  action: string,
  { name, errno, said }: { readonly name: string; readonly errno: number; readonly said: string },
): Error {
  const code = errnoName(errno);
  if (name.endsWith("failed"))
    return new Error(`Cannot ${action}: error running ${name}${said === "" ? "" : `: ${said}`}`);
  const reasons: Record<string, string> = {
    ENOENT: "there is no such program in the container",
    EACCES: "it is not executable",
    ENOEXEC: "it is not a program for this machine",
  };
  // "executable file not found in $PATH" and "permission denied": callers look for the words of runc.
  const words: Record<string, string> = {
    ENOENT: " (executable file not found in $PATH: no such file or directory)",
    EACCES: " (permission denied)",
  };
  if (name.startsWith("execute ")) {
    return Object.assign(new Error(`Cannot ${name}: ${reasons[code] ?? code}${words[code] ?? ""}`), { code });
  }
  return Object.assign(new Error(`Cannot ${action}: ${name}: ${code}`), { code, errno });
}
