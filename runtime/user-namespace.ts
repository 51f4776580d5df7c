/** User namespaces with given id maps, held by a descriptor or visited while a short-lived process lives in them. */
import { writeFileSync } from "node:fs";
import { CLONE_NEWUSER, CLONE_PARENT, O_RDONLY } from "./linux.ts";
import type { IdMapping } from "./oci-config.ts";
import { compileProgram, failMessage, messageBytes, type Operation } from "./program.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import { architecture, close, open, pipe, SyscallError, trySyscall } from "./syscall.ts";

/** Makes a user namespace and returns a descriptor of it; the caller closes it. @throws {SyscallError | Error} */
export function mapUserNamespace(uids: readonly IdMapping[], gids: readonly IdMapping[]): number {
  return visitNewNamespaces(CLONE_NEWUSER, (pid) => {
    writeIdMaps(pid, uids, gids);
    return open(`/proc/${pid}/ns/user`, O_RDONLY);
  });
}

/** The lines of /proc/PID/uid_map. */
function idMapText(mappings: readonly IdMapping[]): string {
  return mappings.map(({ containerID, hostID, size }) => `${containerID} ${hostID} ${size}\n`).join("");
}

/** Writes both id maps of a process in a new user namespace. @throws {Error} */
export function writeIdMaps(pid: number, uids: readonly IdMapping[], gids: readonly IdMapping[]): void {
  for (const [file, mappings] of [
    ["uid_map", uids],
    ["gid_map", gids],
  ] as const) {
    try {
      writeFileSync(`/proc/${pid}/${file}`, idMapText(mappings));
    } catch (error) {
      throw new Error(`Cannot map ids: write "${idMapText(mappings).trim()}" to ${file}: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
}

/**
 * Makes a process in new namespaces and ends it when `visit` returns; what holds a descriptor of them keeps them.
 *
 * @param flags CLONE_NEWUSER and others; the user namespace is made first and owns the rest. No ids are mapped yet.
 * @param options.within A user namespace to be in first, which then owns them.
 * @throws {SyscallError} If the kernel refuses them.
 */
export function visitNewNamespaces<T>(
  flags: number,
  visit: (pid: number) => T,
  { within }: { readonly within?: number } = {},
): T {
  const status = pipe();
  const release = pipe();
  const further = within === undefined ? [] : [within];
  const { targets, pairs } = placeDescriptors<readonly number[]>([status.write, release.read, ...further]);
  const [statusFd = -1, releaseFd = -1, withinFd] = targets;
  const plan = holderPlan(flags, { statusFd, releaseFd, ...(withinFd === undefined ? {} : { withinFd }) });
  const program = compileProgram(plan, { architecture, statusFd });
  const stage = startProgram(program.file, "slipway-userns", pairs);
  close(status.write);
  close(release.read);
  let holder = 0;
  try {
    const answer = Buffer.alloc(messageBytes);
    const length = trySyscall("read", status.read, answer, answer.length);
    if (length !== messageBytes) throw new Error("Cannot make new namespaces: the process that makes them died");
    if (answer.readUInt32LE(0) === failMessage) {
      throw new SyscallError("clone3", answer.readUInt32LE(4), "make new namespaces");
    }
    holder = answer.readUInt32LE(4);
    return visit(holder);
  } finally {
    close(release.write);
    close(status.read);
    for (const pid of [stage, holder]) if (pid !== 0) trySyscall("wait4", pid, Buffer.alloc(4), 0, 0);
  }
}

function holderPlan(
  flags: number,
  fds: { readonly statusFd: number; readonly releaseFd: number; readonly withinFd?: number },
): Operation[] {
  const { statusFd, releaseFd, withinFd } = fds;
  const clone = Buffer.alloc(88); // struct clone_args
  clone.writeBigUInt64LE(BigInt(flags | CLONE_PARENT), 0);
  const ready = Buffer.alloc(messageBytes);
  ready.writeUInt32LE(failMessage + 1, 0);
  return [
    { memory: "cloneArguments", size: 88, bytes: clone },
    { memory: "ready", size: messageBytes, bytes: ready },
    { memory: "byte", size: 8 },
    ...(withinFd === undefined
      ? []
      : [{ name: "join the user namespace", call: "setns", args: [withinFd, CLONE_NEWUSER] } as const]),
    {
      name: "clone into new namespaces",
      call: "clone3",
      args: [{ addressOf: "cloneArguments" }, 88],
      store: { memory: "ready", offset: 4 },
      ifPositive: "answer",
    },
    { name: "wait for the agent", call: "read", args: [releaseFd, { addressOf: "byte" }, 1] },
    { name: "end", call: "exit_group", args: [0] },
    { label: "answer" },
    { name: "answer", call: "write", args: [statusFd, { addressOf: "ready" }, messageBytes] },
    { name: "end", call: "exit_group", args: [0] },
  ];
}
