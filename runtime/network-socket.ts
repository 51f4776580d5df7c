/**
 * Network namespaces that this process never visits: one that has its privileges in a user namespace could not come back to
 * the host's. A short-lived process makes the namespace and hands over what speaks to it.
 */
import { descriptorMessage } from "./descriptor-message.ts";
import {
  AT_FDCWD,
  CLONE_NEWNET,
  CLONE_NEWUSER,
  EBADF,
  ENOENT,
  MSG_NOSIGNAL,
  O_CLOEXEC,
  O_RDONLY,
  O_WRONLY,
  SOCK_CLOEXEC,
} from "./linux.ts";
import { AF_NETLINK, NETLINK_NETFILTER, NETLINK_ROUTE, SOCK_RAW } from "./netlink.ts";
import { namespaceSettings } from "./network-namespace.ts";
import { compileProgram, failMessage, messageBytes, type Operation } from "./program.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import {
  architecture,
  close,
  pipe,
  receiveDescriptors,
  socketPair,
  SyscallError,
  syscall,
  trySyscall,
} from "./syscall.ts";

/** Descriptors; the caller closes them. */
export interface NamespaceSockets {
  readonly namespaceFd: number;
  /** Netlink sockets that speak to the namespace: for links and addresses, for rules, and for rules by another thread. */
  readonly routeFd: number;
  readonly filterFd: number;
  readonly probeFd: number;
}

/** Nobody else is there whose address it could be; detection would take a second. */
const withoutDetection = [
  ["ipv6/conf/all/accept_dad", "0"],
  ["ipv6/conf/default/accept_dad", "0"],
] as const;

const handedOver = ["namespace", "route", "filter", "probe"] as const;

/**
 * Makes a network namespace with the settings of a job's. It lasts as long as its descriptors, or a process in it. Blocks
 * for some milliseconds.
 *
 * @param options.owner The user namespace that it belongs to. @default the agent's
 * @throws {SyscallError}
 */
export function makeNamespaceWithSockets({ owner }: { readonly owner?: number | undefined } = {}): NamespaceSockets {
  const status = pipe();
  const [ours, theirs] = socketPair();
  const further = owner === undefined ? [] : [owner];
  const { targets, pairs } = placeDescriptors<readonly number[]>([status.write, theirs, ...further]);
  const [statusFd = -1, socketFd = -1, ownerFd] = targets;
  const program = compileProgram(planNamespace(socketFd, ownerFd), { architecture, statusFd });
  try {
    const pid = startProgram(program.file, "slipway-netns", pairs);
    close(status.write);
    close(theirs);
    syscall("wait4", pid, Buffer.alloc(4), 0, 0);
    const message = Buffer.alloc(messageBytes);
    if (trySyscall("read", status.read, message, message.length) > 0 && message.readUInt32LE(0) === failMessage) {
      const operation = program.operationAt(message.readBigUInt64LE(8));
      const name = operation !== undefined && "name" in operation ? operation.name : "make a network namespace";
      throw new SyscallError("unshare", message.readUInt32LE(4), name);
    }
    const [namespaceFd = -1, routeFd = -1, filterFd = -1, probeFd = -1] = receiveDescriptors(ours, handedOver.length);
    return { namespaceFd, routeFd, filterFd, probeFd };
  } finally {
    close(status.read);
    close(ours);
  }
}

function planNamespace(socketFd: number, ownerFd: number | undefined): Operation[] {
  const message = descriptorMessage("handed", { data: Buffer.alloc(1), count: handedOver.length });
  const store = (what: (typeof handedOver)[number]) => message.descriptor(handedOver.indexOf(what));
  const netlink = (what: "route" | "filter" | "probe", protocol: number): Operation => ({
    name: `make a netlink socket for ${what}`,
    call: "socket",
    args: [AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol],
    store: store(what),
  });
  return [
    ...message.memory,
    { memory: "setting", size: 4, bytes: Buffer.from([255, 255, 255, 255]) },
    ...(ownerFd === undefined
      ? []
      : [{ name: "join the user namespace", call: "setns", args: [ownerFd, CLONE_NEWUSER] } as const]),
    { name: "make a network namespace", call: "unshare", args: [CLONE_NEWNET] },
    ...[...namespaceSettings({ hasOwner: ownerFd !== undefined }), ...withoutDetection].flatMap(
      ([path, value]): Operation[] => [
        {
          name: `open "${path}"`,
          call: "openat",
          args: [AT_FDCWD, { text: `/proc/sys/net/${path}` }, O_WRONLY | O_CLOEXEC, 0],
          store: "setting",
          tolerate: [ENOENT], // a kernel without IPv6
        },
        {
          name: `set "${path}"`,
          call: "write",
          args: [{ load: "setting" }, { text: value }, value.length],
          tolerate: [EBADF],
        },
        { name: `close "${path}"`, call: "close", args: [{ load: "setting" }], tolerate: [EBADF] },
      ],
    ),
    {
      name: "open the network namespace",
      call: "openat",
      args: [AT_FDCWD, { text: "/proc/self/ns/net" }, O_RDONLY | O_CLOEXEC, 0],
      store: store("namespace"),
    },
    netlink("route", NETLINK_ROUTE),
    netlink("filter", NETLINK_NETFILTER),
    netlink("probe", NETLINK_NETFILTER),
    { name: "hand them over", call: "sendmsg", args: [socketFd, message.header, MSG_NOSIGNAL] },
    { name: "end", call: "exit_group", args: [0] },
  ];
}
