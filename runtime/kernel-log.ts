/** The kernel's log, read when there is a question, and what it says of containers whose memory was at its end. */
import { readFileSync } from "node:fs";
import { O_NONBLOCK, O_RDONLY } from "./linux.ts";
import { type OomKill, OomLogParser, type OomReport } from "./oom-log.ts";
import { close, open, trySyscall } from "./syscall.ts";

/** Whom a report may be about. */
export interface OomSubject {
  /** How its cgroup's name ends in the log. */
  readonly cgroup: string;
  /** Its user ids on the host; no other container that runs has them. */
  readonly uids: { readonly base: number; readonly size: number };
}

const EPIPE = 32;
const SEEK_END = 2;
/** A record is at most so long (CONSOLE_EXT_LOG_MAX). */
const recordBytes = 8192;
/** More than a kernel keeps by default; a flood of messages must not hold the agent up. */
const mostRecords = 20_000;
/** Of reports that nobody has asked for yet. */
const mostKept = 256;

/**
 * Reports of the kernel on processes that it killed for memory, from the log since this was opened.
 *
 * Nothing is read before somebody asks: the kernel keeps what it logs. What is found on others is kept for them.
 */
export class OomReports {
  readonly #fd: number;
  readonly #parser = new OomLogParser(pageBytes());
  #reports: OomReport[] = [];
  #kills: OomKill[] = [];

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Undefined where this process may not read the log: without CAP_SYSLOG, or in a container without /dev/kmsg. */
  static open(): OomReports | undefined {
    let fd: number;
    try {
      fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
    } catch {
      return undefined;
    }
    if (trySyscall("lseek", fd, 0, SEEK_END) >= 0) return new OomReports(fd);
    close(fd);
    return undefined;
  }

  /**
   * Takes what the log says about a container, of which the first report is what ended it. Where the kernel wrote too many
   * to write all, there may be the killed process only.
   */
  take({ cgroup, uids }: OomSubject): { readonly report?: OomReport; readonly kill?: OomKill } {
    this.#read();
    const isOf = ({ taskCgroup }: OomReport) => `${taskCgroup}/`.includes(`/${cgroup}/`);
    const owns = ({ uid }: { readonly uid: number }) => uid >= uids.base && uid < uids.base + uids.size;
    const found = this.#reports.find(isOf);
    // Where more than its own memory was at an end, the list names processes of others.
    const report = found && { ...found, processes: found.processes.filter(owns) };
    const kill = this.#kills.find(owns);
    this.#reports = this.#reports.filter((other) => !isOf(other));
    this.#kills = this.#kills.filter((other) => !owns(other));
    return { ...(report !== undefined && { report }), ...(kill !== undefined && { kill }) };
  }

  close(): void {
    close(this.#fd);
  }

  #read(): void {
    const buffer = Buffer.alloc(recordBytes);
    for (let count = 0; count < mostRecords; count++) {
      const length = trySyscall("read", this.#fd, buffer, buffer.length);
      // What was overwritten before it was read is lost; the next read goes on behind it.
      if (length === -EPIPE) continue;
      if (length <= 0) return;
      // "6,339,5140900,-;the message\n KEY=value\n"
      const text = buffer.toString("latin1", 0, length);
      const taken = this.#parser.take(text.slice(text.indexOf(";") + 1, text.indexOf("\n")));
      if (taken === undefined) continue;
      if ("report" in taken) keep(this.#reports, taken.report);
      else keep(this.#kills, taken.kill);
    }
  }
}

function keep<T>(list: T[], item: T): void {
  list.push(item);
  if (list.length > mostKept) list.shift();
}

/** AT_PAGESZ of the auxiliary vector. @see getauxval(3) */
function pageBytes(): number {
  const AT_PAGESZ = 6n;
  const vector = readFileSync("/proc/self/auxv");
  for (let at = 0; at + 16 <= vector.length; at += 16) {
    if (vector.readBigUInt64LE(at) === AT_PAGESZ) return Number(vector.readBigUInt64LE(at + 8));
  }
  return 4096;
}
