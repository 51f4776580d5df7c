/** Statistics of a container in the form in which `runc events` prints them. @see runc types/events.go */
import { readdirSync, readFileSync } from "node:fs";
import type { OciCgroup } from "./oci-cgroup.ts";
import { recordIn } from "./oci-control.ts";

/** One line of `events`. */
export interface OciEvent {
  readonly type: "stats" | "oom";
  readonly id: string;
  readonly data?: object;
}

/** Reads a container's statistics now. @throws {Error} If it has stopped. */
export function containerStatistics(root: string, id: string): OciEvent {
  const { cgroup } = recordIn(root, id, ["created", "running", "paused"], "read the statistics of");
  return { type: "stats", id, data: statistics(cgroup) };
}

/** How often the kernel has killed a process of it for memory. */
export function oomKills(root: string, id: string): number {
  const { cgroup } = recordIn(root, id, ["created", "running", "paused"], "watch");
  const files = new Files(cgroup);
  return files.key("memory", files.isUnified ? "memory.events" : "memory.oom_control", "oom_kill") ?? 0;
}

function statistics(cgroup: OciCgroup): object {
  const files = new Files(cgroup);
  return {
    cpu: files.isUnified ? cpuV2(files) : cpuV1(files),
    memory: files.isUnified ? memoryV2(files) : memoryV1(files),
    pids: { current: files.number("pids", "pids.current"), limit: files.number("pids", "pids.max") },
    blkio: {
      ioServiceBytesRecursive: files.isUnified ? ioV2(files) : ioV1(files, "io_service_bytes_recursive"),
      ...(files.isUnified ? {} : { ioServicedRecursive: ioV1(files, "io_serviced_recursive") }),
    },
    hugetlb: hugePages(files),
    network_interfaces: [],
  };
}

function cpuV1(files: Files): object {
  const userHz = 10_000_000; // cpuacct.stat counts in hundredths of a second
  const share = (key: string) => (files.key("cpuacct", "cpuacct.stat", key) ?? 0) * userHz;
  const percpu = files.text("cpuacct", "cpuacct.usage_percpu");
  return {
    usage: {
      total: files.number("cpuacct", "cpuacct.usage"),
      ...(percpu === undefined ? {} : { percpu: percpu.trim().split(/\s+/).map(Number) }),
      kernel: share("system"),
      user: share("user"),
    },
    throttling: {
      periods: files.key("cpu", "cpu.stat", "nr_periods"),
      throttledPeriods: files.key("cpu", "cpu.stat", "nr_throttled"),
      throttledTime: files.key("cpu", "cpu.stat", "throttled_time"),
    },
  };
}

function cpuV2(files: Files): object {
  const nanoseconds = (key: string) => (files.key("cpu", "cpu.stat", key) ?? 0) * 1000;
  return {
    usage: { total: nanoseconds("usage_usec"), kernel: nanoseconds("system_usec"), user: nanoseconds("user_usec") },
    throttling: {
      periods: files.key("cpu", "cpu.stat", "nr_periods"),
      throttledPeriods: files.key("cpu", "cpu.stat", "nr_throttled"),
      throttledTime: nanoseconds("throttled_usec"),
    },
  };
}

function memoryV1(files: Files): object {
  const entry = (prefix: string) => ({
    limit: files.number("memory", `${prefix}.limit_in_bytes`),
    usage: files.number("memory", `${prefix}.usage_in_bytes`),
    max: files.number("memory", `${prefix}.max_usage_in_bytes`),
    failcnt: files.number("memory", `${prefix}.failcnt`) ?? 0,
  });
  const raw = files.keys("memory", "memory.stat");
  return {
    cache: raw["cache"],
    usage: entry("memory"),
    swap: entry("memory.memsw"),
    kernel: entry("memory.kmem"),
    kernelTCP: entry("memory.kmem.tcp"),
    raw,
  };
}

function memoryV2(files: Files): object {
  const raw = files.keys("memory", "memory.stat");
  const entry = (prefix: string) => ({
    limit: files.number("memory", `${prefix}.max`),
    usage: files.number("memory", `${prefix}.current`),
    max: files.number("memory", `${prefix}.peak`),
    failcnt: files.key("memory", prefix === "memory" ? "memory.events" : "memory.swap.events", "max") ?? 0,
  });
  return { cache: raw["file"], usage: entry("memory"), swap: entry("memory.swap"), raw };
}

function ioV1(files: Files, file: string): object[] {
  const text = files.text("blkio", `blkio.throttle.${file}`) ?? "";
  return [...text.matchAll(/^(\d+):(\d+) (\w+) (\d+)$/gm)].map(([, major, minor, op, value]) => {
    return { major: Number(major), minor: Number(minor), op, value: Number(value) };
  });
}

function ioV2(files: Files): object[] {
  const text = files.text("io", "io.stat") ?? "";
  return [...text.matchAll(/^(\d+):(\d+) (.*)$/gm)].flatMap(([, major, minor, rest = ""]) =>
    [...rest.matchAll(/(rbytes|wbytes)=(\d+)/g)].map(([, key, value]) => {
      return {
        major: Number(major),
        minor: Number(minor),
        op: key === "rbytes" ? "Read" : "Write",
        value: Number(value),
      };
    }),
  );
}

function hugePages(files: Files): object {
  const sizes = files
    .names("hugetlb")
    .flatMap((name) => /^hugetlb\.([^.]+)\.(?:max|limit_in_bytes)$/.exec(name)?.[1] ?? []);
  return Object.fromEntries(
    sizes.map((size) => {
      const at = (v1: string, v2: string) => files.number("hugetlb", `hugetlb.${size}.${files.isUnified ? v2 : v1}`);
      return [
        size,
        {
          usage: at("usage_in_bytes", "current"),
          max: at("max_usage_in_bytes", "max"),
          failcnt: at("failcnt", "events") ?? 0,
        },
      ];
    }),
  );
}

/** The files of a cgroup, by controller; one that is missing, or says "max", has no value. */
class Files {
  readonly isUnified: boolean;
  readonly #cgroup: OciCgroup;

  constructor(cgroup: OciCgroup) {
    this.#cgroup = cgroup;
    this.isUnified = cgroup.directories.every(({ version }) => version === 2);
  }

  text(controller: string, file: string): string | undefined {
    const path = this.#path(controller);
    try {
      return path === undefined ? undefined : readFileSync(`${path}/${file}`, "utf8");
    } catch {
      return undefined;
    }
  }

  number(controller: string, file: string): number | undefined {
    const text = this.text(controller, file)?.trim();
    return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
  }

  keys(controller: string, file: string): Record<string, number> {
    const text = this.text(controller, file) ?? "";
    return Object.fromEntries([...text.matchAll(/^(\S+) (\d+)$/gm)].map(([, key, value]) => [key, Number(value)]));
  }

  key(controller: string, file: string, key: string): number | undefined {
    return this.keys(controller, file)[key];
  }

  names(controller: string): readonly string[] {
    const path = this.#path(controller);
    return path === undefined ? [] : readdirSync(path);
  }

  #path(controller: string): string | undefined {
    return this.#cgroup.directories.find(({ controllers }) => controllers.includes(controller))?.path;
  }
}
