/** A user namespace held by a descriptor, as idmapped mounts want one. */
import { CLONE_NEWUSER, CLONE_PARENT, O_CLOEXEC, O_DIRECTORY, O_PATH, O_RDONLY, O_WRONLY, AT_FDCWD } from "./linux.ts";
import { compileProgram, failMessage, messageBytes, type Operation } from "./program.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import { architecture, close, open, pipe, SyscallError, syscall, trySyscall } from "./syscall.ts";

/**
 * Makes a user namespace that maps ids 0… to `base`… and returns a descriptor of it.
 *
 * A short-lived process lives in it until its /proc entry has been opened. Blocks for about a millisecond.
 *
 * @throws {SyscallError}
 */
export function holdUserNamespace(idMap: { readonly base: number; readonly size: number }): number {
  const status = pipe();
  const release = pipe();
  const descriptors = placeDescriptors([status.write, release.read] as const);
  const [statusFd, releaseFd] = descriptors.targets;
  const plan = holderPlan(idMap, { statusFd, releaseFd });
  const stage = startProgram(
    compileProgram(plan, { architecture, statusFd }).file,
    "slipway-userns",
    descriptors.pairs,
  );
  close(status.write);
  close(release.read);
  let holder = 0;
  try {
    const answer = Buffer.alloc(messageBytes);
    const length = trySyscall("read", status.read, answer, answer.length);
    if (length !== messageBytes) throw new Error("Cannot make a user namespace: the process that makes it died");
    if (answer.readUInt32LE(0) === failMessage) {
      throw new SyscallError("clone3", answer.readUInt32LE(4), "make a user namespace");
    }
    holder = answer.readUInt32LE(4);
    return open(`/proc/${holder}/ns/user`, O_RDONLY);
  } finally {
    close(release.write);
    close(status.read);
    const reaped = Buffer.alloc(4);
    trySyscall("wait4", stage, reaped, 0, 0);
    if (holder !== 0) syscall("wait4", holder, reaped, 0, 0);
  }
}

function holderPlan(
  idMap: { readonly base: number; readonly size: number },
  { statusFd, releaseFd }: { readonly statusFd: number; readonly releaseFd: number },
): Operation[] {
  const clone = Buffer.alloc(88);
  clone.writeBigUInt64LE(BigInt(CLONE_NEWUSER | CLONE_PARENT), 0);
  const ready = Buffer.alloc(messageBytes);
  ready.writeUInt32LE(failMessage + 1, 0);
  const map = `0 ${idMap.base} ${idMap.size}\n`;
  const write = (path: string): Operation[] => [
    {
      name: `open ${path}`,
      call: "openat",
      args: [{ load: "directory" }, { text: path }, O_WRONLY | O_CLOEXEC, 0],
      store: "map",
    },
    { name: `write ${path}`, call: "write", args: [{ load: "map" }, { text: map }, map.length] },
  ];
  return [
    { memory: "cloneArguments", size: 88, bytes: clone },
    { memory: "ready", size: messageBytes, bytes: ready },
    { memory: "path", size: 32, bytes: Buffer.from(`/proc/${"/".repeat(10)}\0`) },
    { memory: "directory", size: 4 },
    { memory: "map", size: 4 },
    { memory: "byte", size: 8 },
    {
      name: "clone into a new user namespace",
      call: "clone3",
      args: [{ addressOf: "cloneArguments" }, 88],
      store: { memory: "ready", offset: 4 },
      ifPositive: "parent",
    },
    { name: "wait for the agent", call: "read", args: [releaseFd, { addressOf: "byte" }, 1] },
    { name: "end", call: "exit_group", args: [0] },
    { label: "parent" },
    { name: "format the process id", decimal: { load: "ready", offset: 4 }, endsAt: { addressOf: "path", offset: 16 } },
    {
      name: "open the holder's /proc directory",
      call: "openat",
      args: [AT_FDCWD, { addressOf: "path" }, O_PATH | O_DIRECTORY | O_CLOEXEC, 0],
      store: "directory",
    },
    ...write("uid_map"),
    ...write("gid_map"),
    { name: "answer", call: "write", args: [statusFd, { addressOf: "ready" }, messageBytes] },
    { name: "end", call: "exit_group", args: [0] },
  ];
}
