import { describe, expect, test } from "vitest";
import { OomLogParser, type OomReport } from "../../runtime/oom-log.ts";
import { describeOom } from "../../runtime/oom-reason.ts";

const MiB = 1024 ** 2;
const uid = 268_435_456;

/** As Linux 6.18 writes it. */
const log618 = `python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=500
CPU: 1 UID: 268435456 PID: 4061 Comm: python3 Not tainted 6.18.44 #1 PREEMPT(none)
Call Trace:
memory: usage 32768kB, limit 32768kB, failcnt 0
memory+swap: usage 32768kB, limit 32768kB, failcnt 0
kmem: usage 480kB, limit 9007199254740988kB, failcnt 0
Memory cgroup stats for /a/slipway-1e68-5y0i3/c5:
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[   4059] 268435456  4059     1070        0        0        0         0    24576        0             0 slipway-init
[   4060] 268435456  4060      648      366        0      366         0    49152        0             0 sh
[   4061] 268435456  4061   134564     9107     7000     1107      1000   131072        0           -10 my ] prog\\x1b[1
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a/slipway-1e68-5y0i3/c5,task_memcg=/a/slipway-1e68-5y0i3/c5,task=my ] prog\\x1b[1,pid=4061,uid=268435456
Memory cgroup out of memory: Killed process 4061 (my ] prog\\x1b[1) total-vm:538256kB, anon-rss:28000kB, file-rss:4428kB, shmem-rss:4000kB, UID:268435456 pgtables:128kB oom_score_adj:500`;

/** As Linux 6.1 writes it: no kinds of memory in the list. */
const log61 = `memory: usage 65536kB, limit 65536kB, failcnt 52
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[    812]  1000   812      648      366    49152        0             0 sh
[    813]  1000   813   134564    20000   131072        0             0 node
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c1,mems_allowed=0,oom_memcg=/s/c1,task_memcg=/s/c1/deeper,task=node,pid=813,uid=1000
Memory cgroup out of memory: Killed process 813 (node) total-vm:538256kB, anon-rss:60000kB, file-rss:20000kB, shmem-rss:0kB, UID:1000 pgtables:128kB oom_score_adj:0`;

function parse(log: string) {
  const parser = new OomLogParser(4096);
  return log.split("\n").flatMap((line) => parser.take(line) ?? []);
}

function reportOf(log: string): OomReport {
  const [first] = parse(log);
  if (first === undefined || !("report" in first)) throw new Error("no report");
  return first.report;
}

describe("OomLogParser", () => {
  test("reads the report of Linux 6.18, whatever a process calls itself", () => {
    const pages = 4096;
    const cgroup = "/a/slipway-1e68-5y0i3/c5";
    expect(parse(log618)).toEqual([
      {
        report: {
          limitedCgroup: cgroup,
          taskCgroup: cgroup,
          usedBytes: 32 * MiB,
          limitBytes: 32 * MiB,
          processes: [
            { pid: 4059, uid, name: "slipway-init", memoryBytes: 0 },
            { pid: 4060, uid, name: "sh", memoryBytes: 0 },
            { pid: 4061, uid, name: "my ] prog\\x1b[1", memoryBytes: 8000 * pages },
          ],
          killed: { pid: 4061, name: "my ] prog\\x1b[1" },
        },
      },
      { kill: { pid: 4061, uid, name: "my ] prog\\x1b[1", memoryBytes: 32_000 * 1024 } },
    ]);
  });

  test("reads the report of Linux 6.1, and what the killed process had for itself", () => {
    const [, second] = parse(log61);
    expect(reportOf(log61)).toMatchObject({
      limitedCgroup: "/s/c1",
      taskCgroup: "/s/c1/deeper",
      processes: [{ name: "sh" }, { pid: 813, uid: 1000, name: "node", memoryBytes: 20_000 * 4096 }],
    });
    expect(second).toEqual({ kill: { pid: 813, uid: 1000, name: "node", memoryBytes: 60_000 * 1024 } });
  });

  test("does not take one report's list for another's", () => {
    const [, , third, fourth] = parse(`${log61}\n${log61.split("\n").slice(5).join("\n")}`);
    expect(third).toMatchObject({ report: { processes: [], taskCgroup: "/s/c1/deeper" } });
    expect((third as { report: OomReport }).report.usedBytes).toBeUndefined();
    expect(fourth).toMatchObject({ kill: { name: "node" } });
  });

  test("knows the machine's memory from a cgroup's", () => {
    const line =
      "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/s/c1,task=x,pid=1,uid=0";
    expect(reportOf(line)).toEqual({ taskCgroup: "/s/c1", processes: [], killed: { pid: 1, name: "x" } });
  });

  test.for([
    "oom-kill:constraint=CONSTRAINT_MEMCG",
    "oom-kill:,task_memcg=/a,task=b,pid=1,uid=1",
    "[  12] 1 2 3",
    "Memory cgroup out of memory: Killed process 1 (x) total-vm:1kB",
    "(x) total-vm:1kB, anon-rss:1kB, file-rss:1kB, shmem-rss:0kB, UID:5",
    "x[1]: segfault at 0 ip 0 sp 0 error 4 in oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/s,task_memcg=/s,task=x,pid=1,uid=1",
    "",
  ])("ignores %j", (line) => {
    expect(parse(line)).toEqual([]);
  });

  test("takes names in a nested cgroup for no other cgroup", () => {
    const line = log61.split("\n")[5] ?? "";
    const report = reportOf(line.replace("task_memcg=/s/c1/deeper", "task_memcg=/s/c1/x,task=y,task_memcg=/s/c2"));
    expect(report.taskCgroup).toBe("/s/c1/x");
  });
});

describe("describeOom", () => {
  const facts = { limitBytes: 512 * MiB, initPid: 1, cgroup: "slipway-a-b/c7" };
  const process = (pid: number, name: string, mebibytes: number) => ({ pid, uid, name, memoryBytes: mebibytes * MiB });
  const killed = { pid: 3, name: "node" };
  const processes = [process(1, "slipway-init", 0), process(2, "sh", 1), process(3, "node", 480)];
  const own = { limitedCgroup: "/x/slipway-a-b/c7", taskCgroup: "/x/slipway-a-b/c7", killed };

  test("says what the kernel has said", () => {
    const report = { ...own, usedBytes: 512 * MiB, limitBytes: 512 * MiB, processes };
    expect(describeOom({ ...facts, report })).toBe(
      "killed: used 512 MiB of 512 MiB (2 processes, largest: node 480 MiB)",
    );
  });

  test("takes the memory of the largest one from where it is told apart from files", () => {
    const report = { ...own, usedBytes: 512 * MiB, limitBytes: 512 * MiB, processes };
    expect(describeOom({ ...facts, report, kill: process(3, "node", 400) })).toContain("largest: node 400 MiB");
    expect(describeOom({ ...facts, report, kill: process(2, "sh", 1) })).toContain("largest: node 480 MiB");
  });

  test("makes do with less", () => {
    expect(describeOom({ ...facts, peakBytes: 511 * MiB, kill: process(3, "node", 480) })).toBe(
      "killed: used 511 MiB of 512 MiB (largest: node 480 MiB)",
    );
    expect(describeOom({ ...facts, peakBytes: 512 * MiB, sample: processes })).toBe(
      "killed: used 512 MiB of 512 MiB (2 processes shortly before, largest: node 480 MiB)",
    );
    expect(describeOom({ ...facts, peakBytes: 600 * MiB })).toBe("killed: used 512 MiB of 512 MiB");
    expect(describeOom(facts)).toBe("killed: used all of its 512 MiB");
  });

  test("does not blame a step for the memory of others", () => {
    const report = {
      ...own,
      limitedCgroup: "/x/slipway-a-b",
      usedBytes: 8192 * MiB,
      limitBytes: 8192 * MiB,
      processes,
    };
    expect(describeOom({ ...facts, peakBytes: 100 * MiB, report })).toBe(
      "killed: all steps of this agent together used 8 GiB of 8 GiB (this step up to 100 MiB of its 512 MiB; 2 processes, largest: node 480 MiB)",
    );
    expect(describeOom({ ...facts, peakBytes: 100 * MiB })).toBe(
      "killed: all steps of this agent together used more than they may (this step up to 100 MiB of its 512 MiB)",
    );
    expect(describeOom({ ...facts, peakBytes: 511 * MiB, reachedOwnLimit: false })).toContain("all steps");
    const { limitedCgroup: _, ...machine } = own;
    expect(describeOom({ ...facts, report: { ...machine, processes: [] } })).toBe(
      "killed: the machine had no memory left",
    );
  });
});
