/**
 * The configuration of a container as the OCI runtime specification defines it, 1.0 to 1.3, for Linux.
 *
 * What Slipway does not do is refused by name. @see https://github.com/opencontainers/runtime-spec/blob/main/config.md
 */
import { RLIMIT, type RlimitName } from "./linux.ts";
import {
  absolutePath,
  boolean,
  i64,
  integer,
  list,
  map,
  object,
  OciConfigError,
  oneOf,
  type Parsed,
  parseJson,
  type Parser,
  string,
  u32,
  u64,
} from "./oci-parser.ts";
import type { OciSeccomp } from "./seccomp-oci.ts";

const idMapping = object({ containerID: u32, hostID: u32, size: u32 }, {});
export type IdMapping = Parsed<typeof idMapping>;

const capabilitySet = list(string);

const rlimit = object({ type: oneOf(Object.keys(RLIMIT) as RlimitName[]), soft: u64, hard: u64 }, {});

const processParser = object(
  { cwd: absolutePath },
  {
    terminal: boolean,
    consoleSize: object({ height: integer(0, 0xffff), width: integer(0, 0xffff) }, {}),
    user: object({}, { uid: u32, gid: u32, umask: integer(0, 0o7777), additionalGids: list(u32) }),
    args: list(string),
    env: list(string),
    rlimits: list(rlimit),
    capabilities: object(
      {},
      {
        bounding: capabilitySet,
        effective: capabilitySet,
        inheritable: capabilitySet,
        permitted: capabilitySet,
        ambient: capabilitySet,
      },
    ),
    noNewPrivileges: boolean,
    oomScoreAdj: integer(-1000, 1000),
    apparmorProfile: string,
    selinuxLabel: string,
    ioPriority: object(
      { class: oneOf(["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"]) },
      { priority: integer(0, 7) },
    ),
    scheduler: object(
      {
        policy: oneOf(["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_IDLE", "SCHED_DEADLINE"]),
      },
      {
        nice: integer(-20, 19),
        priority: integer(0, 99),
        flags: list(
          oneOf([
            "SCHED_FLAG_RESET_ON_FORK",
            "SCHED_FLAG_RECLAIM",
            "SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY",
            "SCHED_FLAG_KEEP_PARAMS",
          ]),
        ),
        runtime: u64,
        deadline: u64,
        period: u64,
      },
    ),
    execCPUAffinity: object({}, { initial: string, final: string }),
  },
  { commandLine: "it is for Windows" },
);
export type OciProcess = Parsed<typeof processParser>;

const mount = object(
  { destination: string },
  {
    type: string,
    source: string,
    options: list(string),
    uidMappings: list(idMapping),
    gidMappings: list(idMapping),
  },
);
export type OciMount = Parsed<typeof mount>;

const hook = object({ path: absolutePath }, { args: list(string), env: list(string), timeout: integer(1, 2 ** 31) });
export type OciHook = Parsed<typeof hook>;

const hooks = object(
  {},
  {
    prestart: list(hook),
    createRuntime: list(hook),
    createContainer: list(hook),
    startContainer: list(hook),
    poststart: list(hook),
    poststop: list(hook),
  },
);

export const namespaceTypes = ["user", "mount", "pid", "network", "ipc", "uts", "cgroup", "time"] as const;
export type NamespaceType = (typeof namespaceTypes)[number];

const namespace = object({ type: oneOf(namespaceTypes) }, { path: string });

const device = object(
  { type: oneOf(["c", "b", "u", "p"]), path: absolutePath },
  {
    major: integer(0, 0xfff),
    minor: integer(0, 0xf_ffff),
    fileMode: integer(0, 0o177777),
    uid: u32,
    gid: u32,
  },
);
export type OciDevice = Parsed<typeof device>;

const deviceRule = object(
  { allow: boolean },
  { type: oneOf(["a", "b", "c", ""]), major: i64, minor: i64, access: string },
);
export type OciDeviceRule = Parsed<typeof deviceRule>;

const throttle = list(object({ major: u32, minor: u32, rate: u64 }, {}));
const u16 = integer(0, 0xffff);

const resources = object(
  {},
  {
    devices: list(deviceRule),
    memory: object(
      {},
      {
        limit: i64,
        reservation: i64,
        swap: i64,
        kernel: i64,
        kernelTCP: i64,
        swappiness: integer(0, 100),
        disableOOMKiller: boolean,
        useHierarchy: boolean,
        checkBeforeUpdate: boolean,
      },
    ),
    cpu: object(
      {},
      {
        shares: u64,
        quota: i64,
        burst: u64,
        period: u64,
        realtimeRuntime: i64,
        realtimePeriod: u64,
        cpus: string,
        mems: string,
        idle: integer(0, 1),
      },
    ),
    pids: object({}, { limit: i64 }),
    blockIO: object(
      {},
      {
        weight: u16,
        leafWeight: u16,
        weightDevice: list(object({ major: u32, minor: u32 }, { weight: u16, leafWeight: u16 })),
        throttleReadBpsDevice: throttle,
        throttleWriteBpsDevice: throttle,
        throttleReadIOPSDevice: throttle,
        throttleWriteIOPSDevice: throttle,
      },
    ),
    hugepageLimits: list(object({ pageSize: string, limit: u64 }, {})),
    network: object({}, { classID: u32, priorities: list(object({ name: string, priority: u32 }, {})) }),
    rdma: map(object({}, { hcaHandles: u32, hcaObjects: u32 })),
    unified: map(string),
  },
);
export type OciResources = Parsed<typeof resources>;

/** Parsed where it is compiled, see seccomp-oci.ts. */
const seccomp: Parser<OciSeccomp> = (value, where) => {
  object({ defaultAction: string }, {})(value, where);
  return value as OciSeccomp;
};

const linux = object(
  {},
  {
    namespaces: list(namespace),
    uidMappings: list(idMapping),
    gidMappings: list(idMapping),
    timeOffsets: map(object({}, { secs: i64, nanosecs: integer(0, 999_999_999) })),
    devices: list(device),
    cgroupsPath: string,
    resources,
    sysctl: map(string),
    seccomp,
    rootfsPropagation: oneOf([
      "shared",
      "rshared",
      "slave",
      "rslave",
      "private",
      "rprivate",
      "unbindable",
      "runbindable",
      "",
    ]),
    maskedPaths: list(string),
    readonlyPaths: list(string),
    personality: object({ domain: oneOf(["LINUX", "LINUX32"]) }, {}, { flags: "no flag is defined" }),
    memoryPolicy: object({ mode: string }, { nodes: string, flags: list(string) }),
    mountLabel: string,
  },
  {
    intelRdt: "Slipway does not manage resctrl",
    netDevices: "Slipway does not move network devices",
  },
);

const configParser = object(
  { ociVersion: string },
  {
    root: object({ path: string }, { readonly: boolean }),
    process: processParser,
    hostname: string,
    domainname: string,
    mounts: list(mount),
    hooks,
    linux,
    annotations: map(string),
  },
  {
    solaris: "this is Linux",
    windows: "this is Linux",
    vm: "containers are processes of this kernel",
    zos: "this is Linux",
    freebsd: "this is Linux",
  },
);
export type OciConfig = Parsed<typeof configParser>;

/** Parses a config.json. @throws {OciConfigError} Naming the field that is wrong or not supported. */
export function parseOciConfig(text: string): OciConfig {
  const config = configParser(parse(text, "config.json"), "");
  const version = /^1\.([0-9]+)\.[0-9]+(?:[-+].*)?$/.exec(config.ociVersion);
  if (version === null || Number(version[1]) > 3) {
    throw new OciConfigError(`ociVersion ${JSON.stringify(config.ociVersion)} is not supported: 1.0 to 1.3 are`);
  }
  checkNamespaces(config);
  checkProcess(config.process);
  return config;
}

/** Parses a process object, as `exec --process` reads one. @throws {OciConfigError} */
export function parseOciProcess(text: string): OciProcess {
  const parsed = processParser(parse(text, "process"), "process");
  checkProcess(parsed);
  return parsed;
}

/** Parses a resources object, as `update --resources` reads one. @throws {OciConfigError} */
export function parseOciResources(text: string): OciResources {
  return resources(parse(text, "resources"), "linux.resources");
}

function parse(text: string, what: string): unknown {
  try {
    return parseJson(text);
  } catch (error) {
    throw new OciConfigError(`${what} is no JSON: ${(error as Error).message}`);
  }
}

function checkProcess(process: OciProcess | undefined): void {
  if (process === undefined) return;
  if (process.args !== undefined && process.args.length === 0) {
    throw new OciConfigError("process.args is empty: it needs at least the program");
  }
  const types = process.rlimits?.map(({ type }) => type) ?? [];
  const twice = types.find((type, i) => types.indexOf(type) !== i);
  if (twice !== undefined) throw new OciConfigError(`process.rlimits names ${twice} twice`);
}

function checkNamespaces({ linux: section, hostname, domainname }: OciConfig): void {
  const types = section?.namespaces?.map(({ type }) => type) ?? [];
  const twice = types.find((type, i) => types.indexOf(type) !== i);
  if (twice !== undefined) throw new OciConfigError(`linux.namespaces names "${twice}" twice`);
  const mappings = (section?.uidMappings?.length ?? 0) + (section?.gidMappings?.length ?? 0);
  const user = section?.namespaces?.find(({ type }) => type === "user");
  if (mappings > 0 && user === undefined) {
    throw new OciConfigError("linux.uidMappings and linux.gidMappings need a user namespace");
  }
  if (user !== undefined && isNew(user) && (!section?.uidMappings?.length || !section.gidMappings?.length)) {
    throw new OciConfigError("a new user namespace needs linux.uidMappings and linux.gidMappings");
  }
  for (const [name, value] of Object.entries({ hostname, domainname })) {
    if (value && !types.includes("uts")) throw new OciConfigError(`${name} needs a uts namespace`);
  }
  if (section?.timeOffsets?.size && !types.includes("time")) {
    throw new OciConfigError("linux.timeOffsets need a time namespace");
  }
  for (const [key, value] of section?.sysctl ?? []) {
    checkSysctl(key, new Set(types));
    // Two places for one name; Docker gives the domain's in both.
    const name = key.replaceAll("/", ".");
    if (name === "kernel.hostname") throw new OciConfigError(`linux.sysctl "${key}" is not supported: set hostname`);
    if (name === "kernel.domainname" && domainname && domainname !== value) {
      throw new OciConfigError(`linux.sysctl "${key}" and domainname say two things`);
    }
  }
}

/** Whether a namespace is to be made, not joined. */
export function isNew({ path }: { readonly path?: string }): boolean {
  return path === undefined || path === "";
}

/** A sysctl that no namespace of the container owns would change the host. The lists are the kernel's. */
function checkSysctl(key: string, types: ReadonlySet<NamespaceType>): void {
  const name = key.replaceAll("/", ".");
  const ipc =
    /^(?:kernel\.(?:msgmax|msgmnb|msgmni|sem|shmall|shmmax|shmmni|shm_rmid_forced|auto_msgmni|msg_next_id|sem_next_id|shm_next_id)|fs\.mqueue\..+)$/;
  const uts = /^kernel\.(?:hostname|domainname)$/;
  const owner: NamespaceType | undefined = name.startsWith("net.")
    ? "network"
    : ipc.test(name)
      ? "ipc"
      : uts.test(name)
        ? "uts"
        : name.startsWith("user.")
          ? "user"
          : undefined;
  if (owner === undefined)
    throw new OciConfigError(`linux.sysctl "${key}" is not supported: no namespace separates it`);
  if (!types.has(owner)) throw new OciConfigError(`linux.sysctl "${key}" needs a ${owner} namespace`);
  if (name.split(".").some((part) => part === "" || part === "..")) {
    throw new OciConfigError(`linux.sysctl "${key}" is not a name`);
  }
}

/** The path below /proc/sys: the first separator says whether dots or slashes separate. @see sysctl(8) */
export function sysctlPath(key: string): string {
  const first = /[./]/.exec(key)?.[0];
  if (first === "/") return key;
  return key.replaceAll(/[./]/g, (separator) => (separator === "." ? "/" : "."));
}
