/**
 * pasta(1): connects a network namespace to the host's network without any privilege there. It has a tap device in the
 * namespace, takes what is sent and sends it on by sockets of its own, which are ordinary sockets of the agent's user.
 *
 * @see {@link https://passt.top/}
 */
import { AT_FDCWD, EINVAL, O_CREAT, O_RDONLY, O_WRONLY, PR_SET_PDEATHSIG, SIGKILL, WNOHANG } from "./linux.ts";
import { compileProgram, failMessage, type Operation } from "./program.ts";
import { placeDescriptors, startProgram } from "./start-program.ts";
import { architecture, close, errnoName, open, pipe, trySyscall } from "./syscall.ts";

/** What pasta's device is called in the namespace. */
export const pastaLink = "eth0";

/** One pasta; for one namespace. */
export class Pasta implements Disposable {
  readonly #pid: number;
  readonly #errors: number;
  #ended: string | undefined;

  private constructor(pid: number, errors: number) {
    this.#pid = pid;
    this.#errors = errors;
  }

  /**
   * Starts it; the device is there some milliseconds later. It ends with the thread that calls this, too.
   *
   * @param namespacePath A file that is the namespace.
   */
  static start(program: string, namespacePath: string): Pasta {
    const errors = pipe();
    try {
      const { targets, pairs } = placeDescriptors([errors.write] as const);
      const file = compileProgram(planPasta(program, pastaArguments(namespacePath), targets[0]), {
        architecture,
        statusFd: targets[0],
      }).file;
      return new Pasta(startProgram(file, "slipway-pasta", pairs), errors.read);
    } catch (error) {
      close(errors.read);
      throw error;
    } finally {
      close(errors.write);
    }
  }

  /** What it had to say at its end; undefined while it runs. */
  get ended(): string | undefined {
    if (this.#ended === undefined && trySyscall("wait4", this.#pid, Buffer.alloc(4), WNOHANG, 0) !== 0) {
      const text = Buffer.alloc(4096);
      const length = trySyscall("read", this.#errors, text, text.length);
      const said = text.subarray(0, Math.max(0, length));
      this.#ended =
        said[0] === failMessage ? `it cannot be executed: ${errnoName(said.readUInt32LE(4))}` : lastLine(said);
    }
    return this.#ended;
  }

  [Symbol.dispose](): void {
    if (this.ended === undefined) {
      trySyscall("kill", this.#pid, SIGKILL);
      trySyscall("wait4", this.#pid, Buffer.alloc(4), 0, 0);
      this.#ended = "it was ended";
    }
    close(this.#errors);
  }
}

function lastLine(text: Buffer): string {
  return text.toString("utf8").trim().split("\n").at(-1)?.trim() || "it said nothing";
}

/** No port leads in, and neither the gateway's address nor another stands for this host. */
function pastaArguments(namespacePath: string): string[] {
  return [
    "--foreground --quiet --config-net --ns-ifname".split(" "),
    pastaLink,
    "--no-map-gw --no-dhcp --no-dhcpv6 --no-ra".split(" "),
    "--tcp-ports none --udp-ports none --tcp-ns none --udp-ns none --netns-only --netns".split(" "),
    namespacePath,
  ].flat();
}

function planPasta(program: string, args: readonly string[], errorsFd: number): Operation[] {
  const argv = [program, ...args];
  return [
    ...argv.map((value, i): Operation => ({ memory: `argv${i}`, size: 0, bytes: Buffer.from(`${value}\0`) })),
    {
      memory: "argv",
      size: 8 * (argv.length + 1),
      bytes: Buffer.alloc(8 * (argv.length + 1)),
      pointers: argv.map((_, i) => ({ at: 8 * i, to: `argv${i}` })),
    },
    { memory: "environment", size: 8 },
    { name: "die with the agent", call: "prctl", args: [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0] },
    { name: "open /dev/null", call: "openat", args: [AT_FDCWD, { text: "/dev/null" }, O_RDONLY, 0], store: "nothing" },
    { memory: "nothing", size: 4 },
    // EINVAL: it is that descriptor already, for Node's own are closed on execution.
    { name: "set standard input", call: "dup3", args: [{ load: "nothing" }, 0, 0], tolerate: [EINVAL] },
    ...[1, 2].map((fd): Operation => ({ name: `set descriptor ${fd}`, call: "dup3", args: [errorsFd, fd, 0] })),
    { name: "close the rest", call: "close_range", args: [3, 0xffff_ffff, 0] },
    {
      name: `execute "${program}"`,
      call: "execve",
      args: [{ text: program }, { addressOf: "argv" }, { addressOf: "environment" }],
    },
  ];
}

/** Makes a file on which a namespace can be mounted. */
export function makeMountPoint(path: string): void {
  close(open(path, O_WRONLY | O_CREAT, 0o600));
}
