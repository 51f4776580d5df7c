/**
 * Seccomp's SCMP_ACT_NOTIFY: who is to answer for the kernel gets the filter's listener before anything waits for him.
 *
 * The process that loads the filter cannot hand its listener over: the very call could wait for an answer. A helper does,
 * which shares the descriptors but not the filter: it was there before. @see seccomp_unotify(2), and
 * {@link https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#containerprocessstate}
 */
import { descriptorMessage } from "./descriptor-message.ts";
import { EACCES, ENOSYS, EPERM, SIGCHLD } from "./linux.ts";
import type { OciConfig } from "./oci-config.ts";
import { OciConfigError } from "./oci-parser.ts";
import { ociVersion, type OciState } from "./oci-state.ts";
import type { Operation } from "./program.ts";
import { loadSeccomp, type SeccompFilter } from "./seccomp.ts";

/** The agent's socket, connected, and a file with what it is told. */
export interface SeccompAgent {
  readonly socketFd: number;
  readonly stateFd: number;
}

/** More than agents read. */
const largestStateBytes = 64 << 10;

/** Where the agent listens. @throws {OciConfigError} If the filter asks one that is not named. */
export function agentPath({ linux }: OciConfig, filter: SeccompFilter): string | undefined {
  if (!filter.notifies) return undefined;
  const path = linux?.seccomp?.listenerPath;
  if (path) return path;
  throw new OciConfigError("linux.seccomp.listenerPath is missing: SCMP_ACT_NOTIFY needs somebody who answers");
}

/** The container process state of the specification. @param pid Of the process that is filtered, as the runtime sees it. */
export function agentMessage({ linux }: OciConfig, pid: number, state: OciState): string {
  const metadata = linux?.seccomp?.listenerMetadata;
  const message = { ociVersion, fds: ["seccompFd"], pid, ...(metadata ? { metadata } : {}), state };
  const text = JSON.stringify(message);
  if (Buffer.byteLength(text) <= largestStateBytes) return text;
  throw new OciConfigError(
    `linux.seccomp: what its agent is told is longer than ${largestStateBytes} bytes: shorten listenerMetadata or annotations`,
  );
}

const CLONE_FILES = 0x400;
const F_DUPFD = 0;
const MSG_NOSIGNAL = 0x4000;
const EBADF = 9;
/** The helper's, if the listener never comes. */
const helperSeconds = 10n;

/** Loads the filter, and has its listener sent to the agent. */
export function loadNotifyingSeccomp(filter: SeccompFilter, { socketFd, stateFd }: SeccompAgent): Operation[] {
  const message = descriptorMessage("agent", { data: largestStateBytes });
  const timer = Buffer.alloc(32); // struct itimerval
  timer.writeBigInt64LE(helperSeconds, 16);
  const millisecond = Buffer.alloc(16);
  millisecond.writeBigInt64LE(1_000_000n, 8);
  const { memory, offset } = message.descriptor();
  return [
    ...message.memory,
    { memory: "agentHelper", size: 4 },
    { memory: "agentHelperEnd", size: 4 },
    {
      name: "read what the seccomp agent is told",
      call: "pread64",
      args: [stateFd, message.data, largestStateBytes, 0],
      store: message.dataLength,
    },
    // The listener will be the lowest number that is free.
    {
      name: "find the listener's number",
      call: "fcntl",
      args: [stateFd, F_DUPFD, 0],
      store: { memory, offset },
    },
    { name: "free the listener's number", call: "close", args: [{ load: memory, offset }] },
    {
      name: "clone who hands the seccomp listener over",
      call: "clone",
      args: [SIGCHLD | CLONE_FILES, 0, 0, 0, 0],
      store: "agentHelper",
      ifPositive: "the helper is there",
    },
    { name: "set its time limit", call: "setitimer", args: [0, { bytes: timer }, 0] },
    { label: "until there is a listener" },
    {
      name: "hand the seccomp listener to the agent",
      call: "sendmsg",
      args: [socketFd, message.header, MSG_NOSIGNAL],
      tolerate: [EBADF],
      ifPositive: "the agent has it",
    },
    { name: "wait for the listener", call: "nanosleep", args: [{ bytes: millisecond }, 0], tolerate: [ENOSYS] },
    { name: "look again", unequal: [0, 1], goto: "until there is a listener" },
    { label: "the agent has it" },
    { name: "end the helper", call: "exit_group", args: [0] },
    { label: "the helper is there" },
    ...loadSeccomp(filter),
    {
      name: "wait for who hands the seccomp listener over",
      call: "wait4",
      args: [{ load: "agentHelper" }, { addressOf: "agentHelperEnd" }, 0, 0],
      // The filter's answer.
      tolerate: [EPERM, EACCES, ENOSYS],
    },
    { name: "see whether the agent has the listener", unequal: [{ load: "agentHelperEnd" }, 0], goto: "abandoned" },
  ];
}
