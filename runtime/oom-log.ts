/**
 * What the kernel's log says of processes that it killed for memory: who was there, who was the largest.
 *
 * Nothing else knows it exactly: when the counters of a cgroup tell of a kill, the processes are gone. A report is written
 * under a lock, so reports of several cgroups do not mix; of more than ten in five seconds only the line about the killed
 * process is there. Names are the processes' own choice, at most 15 bytes, in which the kernel writes everything but
 * printable ASCII as `\x1b`; they come last in their lines, or behind what identifies a report.
 *
 * @see mm/oom_kill.c and mm/memcontrol.c of Linux: dump_tasks(), dump_oom_victim(), __oom_kill_process()
 */

export interface OomReport {
  /** Whose limit was reached; absent if it was the machine's memory that was at its end. */
  readonly limitedCgroup?: string;
  /** The killed process's. */
  readonly taskCgroup: string;
  /** Of the cgroup whose limit was reached. */
  readonly usedBytes?: number;
  readonly limitBytes?: number;
  /** Those of the cgroup whose limit was reached, or of the machine; none if the kernel wrote no list. */
  readonly processes: readonly OomProcess[];
  readonly killed: { readonly pid: number; readonly name: string };
}

/** A process when the memory was at its end. */
export interface OomProcess {
  readonly pid: number;
  /** On the host. */
  readonly uid: number;
  /** As the kernel writes it: printable ASCII. */
  readonly name: string;
  /** Its own and shared memory, without the files it shows; with them where the kernel does not tell them apart. */
  readonly memoryBytes: number;
}

/** A process that was killed; written for every one, however many there are. */
export type OomKill = OomProcess;

/** Reads the log's messages one by one, in order. */
export class OomLogParser {
  readonly #pageBytes: number;
  #memory: { readonly usedBytes: number; readonly limitBytes: number } | undefined;
  #columns: readonly string[] | undefined;
  #processes: OomProcess[] = [];

  constructor(pageBytes: number) {
    this.#pageBytes = pageBytes;
  }

  /** Returns what a message completes. */
  take(message: string): { readonly report: OomReport } | { readonly kill: OomKill } | undefined {
    const [, used, limit] = /^memory: usage (\d+)kB, limit (\d+)kB, failcnt/.exec(message) ?? [];
    if (used !== undefined) {
      this.#memory = { usedBytes: Number(used) * 1024, limitBytes: Number(limit) * 1024 };
      return undefined;
    }
    if (/^\[ *\d+\] /.test(message)) {
      this.#takeProcess(message);
      return undefined;
    }
    if (/^\[ *pid *\] /.test(message)) {
      this.#columns = message
        .slice(message.indexOf("]") + 1)
        .trim()
        .split(/\s+/);
      this.#processes = [];
      return undefined;
    }
    if (message.startsWith("oom-kill:")) return this.#finish(message);
    return takeKill(message);
  }

  #takeProcess(message: string): void {
    const columns = this.#columns;
    if (columns === undefined) return;
    // Every column but the name is a number.
    const form = new RegExp(`^\\[ *(\\d+)\\]((?: +-?\\d+){${columns.length - 1}}) (.*)$`);
    const [, pid, numbers, name] = form.exec(message) ?? [];
    if (pid === undefined || numbers === undefined || name === undefined) return;
    const values = numbers.trim().split(/ +/).map(Number);
    const column = (key: string) => values[columns.indexOf(key)];
    const [anonymous, shared] = [column("rss_anon"), column("rss_shmem")];
    const pages = anonymous === undefined || shared === undefined ? (column("rss") ?? 0) : anonymous + shared;
    this.#processes.push({ pid: Number(pid), uid: column("uid") ?? -1, name, memoryBytes: pages * this.#pageBytes });
  }

  /** `oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=sh,pid=7,uid=0` */
  #finish(message: string): { readonly report: OomReport } | undefined {
    const form =
      /^oom-kill:constraint=(\w+),.*?(?:,global_oom|,oom_memcg=(.*?)),task_memcg=(.*?),task=(.*),pid=(\d+),uid=\d+$/;
    const [, constraint, limitedCgroup, taskCgroup, name, pid] = form.exec(message) ?? [];
    const processes = this.#columns === undefined ? [] : this.#processes;
    const memory = this.#memory;
    this.#columns = undefined;
    this.#memory = undefined;
    this.#processes = [];
    if (taskCgroup === undefined || name === undefined) return undefined;
    return {
      report: {
        ...(constraint === "CONSTRAINT_MEMCG" && limitedCgroup !== undefined && { limitedCgroup, ...memory }),
        taskCgroup,
        processes,
        killed: { pid: Number(pid), name },
      },
    };
  }
}

/** `Memory cgroup out of memory: Killed process 7 (sh) total-vm:8kB, anon-rss:4kB, file-rss:4kB, shmem-rss:0kB, UID:0 pgtables:…` */
function takeKill(message: string): { readonly kill: OomKill } | undefined {
  const form =
    /^(?:Memory cgroup out|Out) of memory(?: \(oom_kill_allocating_task\))?: Killed process (\d+) \((.*)\) total-vm:\d+kB, anon-rss:(\d+)kB, file-rss:\d+kB, shmem-rss:(\d+)kB, UID:(\d+)\b/;
  const [, pid, name, anonymous, shared, uid] = form.exec(message) ?? [];
  if (pid === undefined || name === undefined) return undefined;
  const memoryBytes = (Number(anonymous) + Number(shared)) * 1024;
  return { kill: { pid: Number(pid), name, uid: Number(uid), memoryBytes } };
}
