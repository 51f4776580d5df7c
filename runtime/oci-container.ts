/** The operations of the OCI runtime specification on containers: create, start, state, kill, delete. */
import {
  constants,
  existsSync,
  fstatSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { resolve } from "node:path";
import { OwnedDescriptors, PlacedDescriptors } from "./descriptors.ts";
import { limitProcess } from "./join-target.ts";
import {
  AF_UNIX,
  AT_FDCWD,
  F_GETFL,
  F_SETFL,
  MFD_CLOEXEC,
  MNT_DETACH,
  O_CREAT,
  O_EXCL,
  O_NONBLOCK,
  O_PATH,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  RLIMIT,
  S_IFIFO,
  SIGKILL,
  SOCK_CLOEXEC,
  SOCK_STREAM,
} from "./linux.ts";
import {
  cgroupPath,
  cgroupProcesses,
  delegateCgroup,
  findCgroupMounts,
  limitCgroup,
  makeCgroup,
  planCgroup,
  type OciCgroup,
  removeCgroup,
  userManagerCgroup,
  withinMounts,
} from "./oci-cgroup.ts";
import { isRootless } from "./file-owners.ts";
import { isNew, type NamespaceType, type OciConfig, type OciProcess, parseOciConfig } from "./oci-config.ts";
import { type DeviceRule, deviceRules, loadDeviceFilter, mayUse } from "./oci-device-filter.ts";
import { planDevices } from "./oci-devices.ts";
import { agentMessage, agentPath } from "./oci-seccomp-agent.ts";
import { isFrozen, takeBack, thaw } from "./oci-freezer.ts";
import { type Environment, runHook } from "./oci-hooks.ts";
import { cloneRoot, resolveMounts } from "./oci-mounts.ts";
import { OciConfigError } from "./oci-parser.ts";
import { namespaceFlags, ociMessage, type OciPlan, planOciContainer } from "./oci-plan.ts";
import { closeInherited } from "./oci-process.ts";
import { planProcess, readText, type Warn } from "./oci-process-plan.ts";
import { failure, operationNames, ProgramLink, readMessage } from "./oci-program-link.ts";
import { type OciRecord, OciStore, type OciState, startTime, stateOf } from "./oci-state.ts";
import { innermostPid, namespaceProcesses, writeIdMaps } from "./oci-user-namespace.ts";
import { recordIndex } from "./program.ts";
import { kill } from "./reaper.ts";
import { parseSignal } from "./signal-number.ts";
import { startProgram } from "./start-program.ts";
import {
  architecture,
  close,
  cString,
  open,
  sendDescriptors,
  socketPair,
  SyscallError,
  syscall,
  trySyscall,
} from "./syscall.ts";

/** What operations that run hooks need of their caller. */
export interface Callers {
  readonly warn: Warn;
  /** For hooks without one of their own. */
  readonly environment: Environment;
}

export interface CreateOptions extends Callers {
  readonly root: string;
  readonly id: string;
  readonly bundle: string;
  /** The configuration's file, from the bundle on. @default "config.json" */
  readonly configFile?: string;
  readonly pidFile?: string;
  /** Receives the master end of the terminal. */
  readonly consoleSocket?: string;
  /** A connected socket instead; the caller's to close. */
  readonly consoleFd?: number;
  /** Receives a pidfd of the container's process. */
  readonly pidfdSocket?: string;
  /** Descriptors that the program gets, too. @see callersDescriptors */
  readonly preserveFds: readonly number[];
  /** How many of those are listening sockets that systemd handed down; the program is told. @see sd_listen_fds(3) */
  readonly listenFds?: number;
  readonly usesPivot: boolean;
  readonly newKeyring: boolean;
  readonly systemdCgroup: boolean;
}

/** Creates a container: everything up to its program, which waits for `startContainer`. @throws {Error} And leaves nothing. */
export function createContainer(options: CreateOptions): OciRecord {
  const store = new OciStore(options.root, options.id);
  const bundle = resolve(options.bundle);
  const text = readConfigFile(bundle, options.configFile);
  const config = parseOciConfig(text);
  if (config.root === undefined) throw new OciConfigError("root is missing");
  checkConsole(config.process, options);
  store.make();
  const rootPath = resolve(bundle, config.root.path);
  let record: OciRecord = {
    id: options.id,
    bundle,
    rootPath,
    created: new Date().toISOString(),
    pid: 0,
    pidStart: "",
    cgroup: { directories: [], made: [] },
    mountsOnHost: !config.linux?.namespaces?.some(({ type }) => type === "mount"),
    operations: { first: 0, names: [] },
  };
  const update = (change: Partial<OciRecord>) => {
    record = { ...record, ...change };
    store.write(record);
  };
  let ranHooks = false;
  const descriptors = new OwnedDescriptors();
  try {
    store.writeConfig(text);
    update({});
    const mounts = findCgroupMounts();
    const manager = options.systemdCgroup ? (isRootless() ? userManagerCgroup() : "") : undefined;
    const path = cgroupPath(options.id, config.linux?.cgroupsPath, manager);
    update({ cgroup: planCgroup(path, mounts) });
    const leaveOut = !config.linux?.cgroupsPath && isRootless();
    const there = makeCgroup(path, mounts, { leaveOut });
    if (there.length < mounts.length) update({ cgroup: withinMounts(record.cgroup, there) });
    checkCgroupIsFree(path, record.cgroup);
    launch({ options, store, config, record, descriptors, update, onHooks: () => (ranHooks = true) });
    if (options.pidfdSocket !== undefined) sendPidFd(options.pidfdSocket, record.pid);
    if (options.pidFile !== undefined) writePidFile(options.pidFile, record.pid);
    return record;
  } catch (error) {
    descriptors.closeAll();
    if (record.pid !== 0) end(record.pid);
    destroy(store, record);
    if (ranHooks) runPoststop(config, record, options);
    throw error;
  } finally {
    descriptors.closeAll();
  }
}

/** In a cgroup of somebody else limits would be his too, and one that is frozen would let nothing be set up. */
function checkCgroupIsFree(path: string, cgroup: OciCgroup): void {
  const count = cgroupProcesses(cgroup).length;
  const problem =
    count > 0 ? `is not empty: "${path}" has ${count} processes` : isFrozen(cgroup) ? `is frozen: thaw "${path}"` : "";
  if (problem !== "") throw new Error(`Cannot create the container: the container's cgroup ${problem}`);
}

/** More than any real configuration has; parsing takes a multiple of it in memory. */
const largestConfigBytes = 16 << 20;

/** Reads the configuration of a bundle. @throws {Error} Also if it is no file, or larger than 16 MiB. */
export function readBundleConfig(bundle: string, configFile?: string): OciConfig {
  return parseOciConfig(readConfigFile(bundle, configFile));
}

function readConfigFile(bundle: string, configFile = "config.json"): string {
  const where = `Cannot read the bundle "${bundle}": ${configFile}`;
  let fd: number;
  try {
    // A FIFO would let us wait for ever.
    fd = openSync(resolve(bundle, configFile), constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new Error(`${where}: ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new Error(`${where} is no file`);
    if (stat.size > largestConfigBytes) {
      throw new Error(`${where} has ${stat.size} bytes: ${largestConfigBytes} are the most`);
    }
    return readFileSync(fd, "utf8");
  } finally {
    close(fd);
  }
}

function checkConsole(process: OciProcess | undefined, options: CreateOptions): void {
  const has = options.consoleSocket !== undefined || options.consoleFd !== undefined;
  if (process?.terminal && !has) {
    throw new Error("process.terminal needs somebody who takes the terminal: give --console-socket");
  }
  if (has && !process?.terminal)
    throw new Error("--console-socket is for a process with a terminal: set process.terminal");
}

export function writePidFile(path: string, pid: number): void {
  writeFileSync(`${path}.new`, `${pid}`);
  renameSync(`${path}.new`, path);
}

/** Sends a descriptor of a process, by which nobody can mean another one. @throws {Error} If nobody takes it. */
export function sendPidFd(path: string, pid: number): void {
  const descriptors = new OwnedDescriptors();
  try {
    const socket = descriptors.own(connectUnix(path));
    sendDescriptors(socket, [descriptors.own(syscall("pidfd_open", pid, 0))], Buffer.from("pidfd"));
  } catch (error) {
    throw new Error(`Cannot send the process to --pidfd-socket "${path}": ${(error as Error).message}`, {
      cause: error,
    });
  } finally {
    descriptors.closeAll();
  }
}

interface Launch {
  readonly options: CreateOptions;
  readonly store: OciStore;
  readonly config: OciConfig;
  readonly record: OciRecord;
  readonly descriptors: OwnedDescriptors;
  readonly update: (change: Partial<OciRecord>) => void;
  readonly onHooks: () => void;
}

/**
 * The device rules to set. In a user namespace the kernel lets nobody set any, nor make a node: a container has there what the
 * host's rules leave of the nodes that it is given.
 *
 * @throws {OciConfigError} If that would be one that the rules forbid.
 */
function enforcedRules({ linux }: OciConfig): readonly DeviceRule[] | undefined {
  const rules = deviceRules(linux?.resources?.devices);
  if (rules === undefined || !isRootless()) return rules;
  for (const { path, type, major, minor } of linux?.devices ?? []) {
    if (type === "p" || mayUse(rules, { type: type === "b" ? "b" : "c", major, minor })) continue;
    throw new OciConfigError(
      `linux.resources.devices cannot forbid "${path}" in a user namespace, where nobody may set such rules: leave it out of linux.devices`,
    );
  }
  return undefined;
}

function launch({ options, store, config, record, descriptors, update, onHooks }: Launch): void {
  const { own } = descriptors;
  const { cgroup, rootPath, bundle, id } = record;
  const [goOurs, goTheirs] = socketPair().map(own) as [number, number];
  const fifos = makeFifos(store, own);
  const memory = (name: string) => own(syscall("memfd_create", cString(name), MFD_CLOEXEC));
  const hookState = memory("slipway-hook-state");
  const hookOutput = own(open(store.hookOutput, O_RDWR | O_CREAT | O_EXCL, 0o600));
  const consoleFd =
    options.consoleFd ?? (options.consoleSocket === undefined ? undefined : own(connectUnix(options.consoleSocket)));
  const rules = enforcedRules(config);
  const unified = cgroup.directories.every(({ version }) => version === 2);
  const planned =
    config.process === undefined
      ? undefined
      : planProcess(config.process, config, { rootPath, sibling: "self", options });
  const agent = planned?.seccomp === undefined ? undefined : agentPath(config, planned.seccomp);
  const seccompAgent =
    agent === undefined ? undefined : { socketFd: own(connectAgent(agent)), stateFd: memory("slipway-agent-state") };
  const process = planned === undefined || seccompAgent === undefined ? planned : { ...planned, seccompAgent };
  const mounts = resolveMounts({ config, bundle, rootPath, cgroup, cgroupMounts: findCgroupMounts() });
  const local: OciPlan = {
    id,
    config,
    architecture,
    statusFd: fifos.status.write,
    goFd: goTheirs,
    rootFd: own(cloneRootOf(rootPath, config)),
    rootPath,
    isUsers:
      globalThis.process.geteuid?.() !== 0 &&
      config.linux?.namespaces?.some((namespace) => namespace.type === "user" && isNew(namespace)) === true,
    mounts: mounts.map(({ mount }) => mount),
    ...planDevices(config, { directory: `${store.directory}/devices`, own }),
    cgroupFds: cgroup.directories.map(({ path }) => own(open(`${path}/cgroup.procs`, O_WRONLY))),
    deviceFilter:
      unified && rules !== undefined ? cgroup.directories.flatMap(({ path }) => loadDeviceFilter(rules, path)) : [],
    joined: (config.linux?.namespaces ?? [])
      .filter((namespace) => !isNew(namespace))
      .map(({ type, path }) => ({ type, fd: own(openNamespace(type, path ?? "")) })),
    hookEnv: Object.entries(options.environment).map(([name, value]) => `${name}=${value ?? ""}`),
    hookState,
    hookOutput,
    ...(consoleFd === undefined ? {} : { consoleFd }),
    startFd: fifos.start,
    process,
    newKeyring: options.newKeyring,
    usesPivot: options.usesPivot,
    hostKernelMounts: options.usesPivot ? [] : findKernelMounts(rootPath),
  };
  const { plan, pairs, others } = placePlan(local, options.preserveFds);
  const operations = [...closeInherited(others), ...planOciContainer(plan)];
  const names = operationNames(operations);
  const first = names.lastIndexOf("wait for the start") - 1;
  const link = new ProgramLink(operations, {
    statusFd: plan.statusFd,
    status: fifos.status.read,
    go: goOurs,
    hookOutput,
  });
  inheritStdio();
  const stage = startProgram(link.file, "slipway-oci", pairs);
  descriptors.close(fifos.status.write, goTheirs);
  const stateNow = (pid: number, state: OciState["status"]) => stateOf({ id, bundle, pid }, state, config.annotations);

  const pid = link.expect(ociMessage.initPid);
  update({ pid, pidStart: startTime(pid) ?? "", operations: { first, names: names.slice(first) } });
  trySyscall("wait4", stage, Buffer.alloc(4), 0, 0);
  const user = config.linux?.namespaces?.find(({ type }) => type === "user");
  if (user !== undefined && isNew(user)) {
    writeIdMaps(pid, config.linux?.uidMappings ?? [], config.linux?.gidMappings ?? []);
  }
  const { pids, ...earlyResources } = config.linux?.resources ?? {};
  limitCgroup(cgroup, earlyResources, rules);
  if (isDelegated(config)) delegateCgroup(cgroup, hostUser(config));
  link.go();

  for (const { open: openTree } of mounts) {
    if (openTree === undefined) continue;
    link.expect(ociMessage.mountPlease);
    link.give(openTree());
  }
  link.expect(ociMessage.mounted);
  onHooks();
  for (const kind of ["prestart", "createRuntime"] as const) {
    for (const [i, hook] of (config.hooks?.[kind] ?? []).entries()) {
      const state = stateNow(pid, "created");
      naming("Cannot create the container", () =>
        runHook(`${kind} hook #${i}`, hook, { state, callers: options.environment }),
      );
    }
  }
  const inner = innermostPid(pid);
  writeMemory(hookState, JSON.stringify(stateNow(inner, "created")));
  if (seccompAgent !== undefined) {
    writeMemory(seccompAgent.stateFd, agentMessage(config, pid, stateNow(pid, "creating")));
  }
  link.go();

  link.expect(ociMessage.ready);
  if (config.process !== undefined) setLimits(pid, config.process);
  // Last: the processes that set the container up count, too.
  if (pids !== undefined) limitCgroup(cgroup, { pids }, undefined);
  link.go();

  link.expect(ociMessage.created);
  writeMemory(hookState, JSON.stringify(stateNow(inner, "created")));
  if (seccompAgent !== undefined) {
    writeMemory(seccompAgent.stateFd, agentMessage(config, pid, stateNow(pid, "created")));
  }
}

/** The latest first: one may be mounted on another. */
function findKernelMounts(rootPath: string): string[] {
  const lines = readFileSync("/proc/self/mountinfo", "utf8").split("\n");
  return lines
    .flatMap((line) => {
      const [before, after] = line.split(" - ");
      const place = before
        ?.split(" ")[4]
        ?.replaceAll(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
      const isOurs = place === rootPath || place?.startsWith(`${rootPath}/`);
      return place !== undefined && !isOurs && /^(?:proc|sysfs) /.test(after ?? "") ? [place] : [];
    })
    .toReversed();
}

function cloneRootOf(rootPath: string, config: OciConfig): number {
  try {
    return cloneRoot(rootPath, config.linux?.rootfsPropagation);
  } catch (error) {
    throw new OciConfigError(`root.path "${rootPath}": ${(error as Error).message}`, { cause: error });
  }
}

/** The program's side of the descriptors: numbers above all that are in use here, so that none is overwritten too early. */
function placePlan(
  local: OciPlan,
  preserveFds: readonly number[],
): { plan: OciPlan; pairs: (readonly [number, number])[]; others: (readonly [number, number])[] } {
  const placed = new PlacedDescriptors(preserveFds);
  const at = (fd: number) => placed.add(fd);
  const added = {
    statusFd: at(local.statusFd),
    goFd: at(local.goFd),
    rootFd: at(local.rootFd),
    boundDevices: local.boundDevices.map(({ fd, ...mount }) => ({ ...mount, at: at(fd) })),
    cgroupFds: local.cgroupFds.map(at),
    joined: local.joined.map(({ type, fd }) => ({ type, fd: at(fd) })),
    hookState: at(local.hookState),
    hookOutput: at(local.hookOutput),
    startFd: at(local.startFd),
  };
  const { process } = local;
  const agent = process?.seccompAgent;
  const agentAt = agent === undefined ? undefined : { socketFd: at(agent.socketFd), stateFd: at(agent.stateFd) };
  const consoleFd = local.consoleFd === undefined ? undefined : at(local.consoleFd);
  const fix = (fd: number) => placed.base + fd;
  return {
    plan: {
      ...local,
      statusFd: fix(added.statusFd),
      goFd: fix(added.goFd),
      rootFd: fix(added.rootFd),
      boundDevices: added.boundDevices.map(({ at: place, ...mount }) => ({ ...mount, fd: fix(place) })),
      cgroupFds: added.cgroupFds.map(fix),
      joined: added.joined.map(({ type, fd }) => ({ type, fd: fix(fd) })),
      hookState: fix(added.hookState),
      hookOutput: fix(added.hookOutput),
      startFd: fix(added.startFd),
      process:
        process === undefined || agentAt === undefined
          ? process
          : { ...process, seccompAgent: { socketFd: fix(agentAt.socketFd), stateFd: fix(agentAt.stateFd) } },
      ...(consoleFd === undefined ? {} : { consoleFd: fix(consoleFd) }),
    },
    pairs: placed.pairs(),
    others: placed.others(),
  };
}

/** Node may have made a standard descriptor non-blocking, for everybody who shares it: the container's program does. */
export function inheritStdio(): void {
  for (const fd of [0, 1, 2]) {
    const flags = trySyscall("fcntl", fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) !== 0) trySyscall("fcntl", fd, F_SETFL, flags & ~O_NONBLOCK);
  }
}

/**
 * `start` writes to one, the container's process answers through the other: its end is the execution of the program. The
 * other is ours until then: after the limits are set there may be no room for another descriptor.
 */
function makeFifos(
  store: OciStore,
  own: (fd: number) => number,
): { start: number; status: { read: number; write: number } } {
  for (const path of [store.startFifo, store.answerFifo]) {
    syscall("mknodat", AT_FDCWD, cString(path), S_IFIFO | 0o600, 0);
  }
  // Opened for both: neither opening nor reading then depends on whether somebody else has it open.
  const start = own(open(store.startFifo, O_RDWR));
  const read = own(open(store.answerFifo, O_RDONLY | O_NONBLOCK));
  const write = own(open(store.answerFifo, O_WRONLY));
  trySyscall("fcntl", read, F_SETFL, 0);
  return { start, status: { read, write } };
}

/** Connects to a socket of any path: the address has room for 107 bytes only. */
export function connectUnix(path: string): number {
  const socket = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const place = open(path, O_PATH);
  const name = `/proc/self/fd/${place}`;
  const address = Buffer.alloc(2 + name.length + 1);
  address.writeUInt16LE(AF_UNIX, 0);
  address.write(name, 2);
  const result = trySyscall("connect", socket, address, address.length);
  close(place);
  if (result === 0) return socket;
  close(socket);
  throw new SyscallError("connect", -result, `connect to "${path}"`);
}

/** Connects to who answers calls that seccomp asks about. @throws {Error} If nobody listens there. */
export function connectAgent(path: string): number {
  try {
    return connectUnix(path);
  } catch (error) {
    throw new Error(
      `Cannot start the process: linux.seccomp.listenerPath: failed to connect with seccomp agent: ${(error as Error).message}`,
      { cause: error },
    );
  }
}

function openNamespace(type: NamespaceType, path: string): number {
  if (!path.startsWith("/")) throw new OciConfigError(`linux.namespaces: the path "${path}" must be absolute`);
  const fd = open(path, O_RDONLY);
  const NS_GET_NSTYPE = 0xb703;
  const found = trySyscall("ioctl", fd, NS_GET_NSTYPE, 0);
  if (found === namespaceFlags[type]) return fd;
  close(fd);
  throw new OciConfigError(`linux.namespaces: "${path}" is no ${type} namespace`);
}

/** The user of the host that is root in the container's user namespace. */
function hostUser(config: OciConfig): number {
  const uid = config.process?.user?.uid ?? 0;
  const map = config.linux?.uidMappings?.find(
    ({ containerID, size }) => uid >= containerID && uid < containerID + size,
  );
  return map === undefined ? 0 : map.hostID + uid - map.containerID;
}

/** Whether the specification wants the cgroup given away: a namespace of its own, and a writable mount. */
function isDelegated(config: OciConfig): boolean {
  const ownNamespace = config.linux?.namespaces?.some((namespace) => namespace.type === "cgroup" && isNew(namespace));
  const writable = config.mounts?.some(
    ({ source, destination, options }) =>
      source === "cgroup" && destination === "/sys/fs/cgroup" && !options?.includes("ro"),
  );
  return ownNamespace === true && writable === true && hostUser(config) !== 0;
}

/** The configuration's limits, and the caller's for open files. */
export function setLimits(pid: number, process: OciProcess): void {
  limitProcess(pid, process.rlimits);
  if (process.rlimits?.some(({ type }) => type === "RLIMIT_NOFILE")) return;
  // Node raises its own soft limit when it starts; the caller's is what the container should have.
  const callers = Buffer.alloc(16);
  if (trySyscall("prlimit64", globalThis.process.ppid, RLIMIT.RLIMIT_NOFILE, 0, callers) < 0) return;
  trySyscall("prlimit64", pid, RLIMIT.RLIMIT_NOFILE, callers, 0);
}

/** Replaces what a file in memory has. */
export function writeMemory(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  syscall("ftruncate", fd, 0);
  syscall("pwrite64", fd, bytes, bytes.length, 0);
}

/** Kills a process of ours that is being set up, and reaps it. */
function end(pid: number): void {
  kill(pid, SIGKILL);
  trySyscall("wait4", pid, Buffer.alloc(4), 0, 0);
}

/** Starts the program of a created container. @throws {Error} If it is not created, or the program cannot be executed. */
export function startContainer(root: string, id: string, callers: Callers): OciRecord {
  const store = new OciStore(root, id);
  const record = store.read();
  const status = store.status(record);
  if (status !== "created") throw new Error(`Cannot start container "${id}": it is ${status}, not created`);
  const config = store.readConfig();
  if (config.process?.args === undefined)
    throw new Error(`Cannot start container "${id}": its configuration has no process`);
  const answer = open(store.answerFifo, O_RDONLY | O_NONBLOCK);
  const start = open(store.startFifo, O_WRONLY | O_NONBLOCK);
  // Whoever takes the name away is the one who starts.
  unlinkSync(store.startFifo);
  trySyscall("fcntl", answer, F_SETFL, 0);
  trySyscall("write", start, Buffer.from("s"), 1);
  close(start);
  const message = readMessage(answer);
  close(answer);
  rmSync(store.answerFifo, { force: true });
  if (message !== undefined) {
    const { first, names } = record.operations;
    const name = names[recordIndex(message.address) - first] ?? "start the program";
    const said = /hook/.test(name) ? readText(store.hookOutput).trim().slice(-1000) : "";
    if (/hook/.test(name)) stopAndDestroy(store, record, config, callers);
    throw failure("start the container", { name, errno: message.value, said });
  }
  try {
    const { annotations, hooks } = config;
    for (const [i, hook] of (hooks?.poststart ?? []).entries()) {
      const state = stateOf(record, "running", annotations);
      naming("Cannot start the container", () =>
        runHook(`poststart hook #${i}`, hook, { state, callers: callers.environment }),
      );
    }
  } catch (error) {
    stopAndDestroy(store, record, config, callers);
    throw error;
  }
  return record;
}

function stopAndDestroy(store: OciStore, record: OciRecord, config: OciConfig, callers: Callers): void {
  kill(record.pid, SIGKILL);
  awaitStop(store, record);
  destroy(store, record);
  runPoststop(config, record, callers);
}

/** The state of a container, as the specification has it. @throws {Error} If there is none. */
export function containerState(root: string, id: string): OciState {
  const store = new OciStore(root, id);
  return store.state(store.look());
}

/** A signal's number by name, with or without SIG, or number. @throws {Error} */
export function signalNumber(signal: string): number {
  const number = parseSignal(signal);
  if (number === undefined) throw new Error(`There is no signal ${JSON.stringify(signal)}`);
  return number;
}

/** Sends a signal to a container's process, or to all its processes. @throws {Error} If it does not run. */
export function killContainer(root: string, id: string, signal: number, options: { readonly all: boolean }): void {
  const store = new OciStore(root, id);
  const record = store.read();
  const status = store.status(record);
  if (options.all) {
    for (const pid of ownProcesses(record)) trySyscall("kill", pid, signal);
    if (signal === SIGKILL) thaw(record.cgroup);
    return;
  }
  if (status !== "created" && status !== "running" && status !== "paused") {
    throw new Error(`Cannot send signal ${signal} to container "${id}": container not running, it is ${status}`);
  }
  const fd = trySyscall("pidfd_open", record.pid, 0);
  // Held now: if it still is the one that we mean, the id cannot change its meaning any more.
  const isSame = fd >= 0 && startTime(record.pid) === record.pidStart;
  const result = isSame ? trySyscall("pidfd_send_signal", fd, signal, 0, 0) : -3;
  if (fd >= 0) close(fd);
  if (result < 0) throw new SyscallError("kill", -result, `send signal ${signal} to container "${id}"`);
  // Without a pid namespace of its own nothing dies with the container's process.
  if (signal === SIGKILL && !hasOwnPids(store))
    for (const pid of ownProcesses(record)) trySyscall("kill", pid, SIGKILL);
  // On v1 a process that is frozen does not die.
  if (signal === SIGKILL) thaw(record.cgroup);
}

function hasOwnPids(store: OciStore): boolean {
  return (
    store.readConfig().linux?.namespaces?.some((namespace) => namespace.type === "pid" && isNew(namespace)) ?? false
  );
}

/** Those in cgroups that were made for this container, and in no other's; without any, those of its own pid namespace. */
export function ownProcesses({ cgroup, pid, pidStart }: OciRecord): number[] {
  if (cgroup.directories.length === 0) {
    const found = pid === 0 ? [] : namespaceProcesses(pid);
    // Afterwards: the id has meant this process all the time.
    return startTime(pid) === pidStart ? found : [];
  }
  const directories = cgroup.directories.filter(({ path }) => cgroup.made.includes(path));
  return cgroupProcesses({ directories, made: [] });
}

/** Removes a stopped container and all that was made for it. @throws {Error} If it is not stopped, unless `force`. */
export function deleteContainer(root: string, id: string, options: Callers & { readonly force: boolean }): void {
  const store = new OciStore(root, id);
  let record: OciRecord;
  try {
    record = store.read();
  } catch (error) {
    if (!options.force || ![undefined, globalThis.process.geteuid?.()].includes(store.owner)) throw error;
    store.remove(); // a create that was killed before it wrote anything
    return;
  }
  const status = store.status(record);
  if (status !== "stopped") {
    if (!options.force) throw new Error(`Cannot delete container "${id}": it is ${status}, not stopped; kill it first`);
    // There is none yet where the runtime has been killed; what it had begun ends with its cgroup, in `destroy`.
    if (record.pid !== 0) kill(record.pid, SIGKILL);
    thaw(record.cgroup);
    if (record.pid !== 0) {
      if (store.status(record) !== "stopped") takeBack(record.cgroup, record.pid);
      awaitStop(store, record);
    }
  }
  let config: OciConfig | undefined;
  try {
    config = store.readConfig();
  } catch (error) {
    options.warn(`Container "${id}" has lost its configuration: ${(error as Error).message}`);
  }
  destroy(store, record);
  if (config !== undefined) runPoststop(config, record, options);
}

const stopLimitMs = 10_000;

function awaitStop(store: OciStore, record: OciRecord): void {
  if (record.pid === 0) return;
  const until = performance.now() + stopLimitMs;
  while (store.status(record) !== "stopped") {
    if (performance.now() > until) {
      throw new Error(`Container "${record.id}" still runs ${stopLimitMs / 1000} s after SIGKILL`);
    }
    pause(2);
  }
}

function pause(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

/** Puts what could not be done before the reason. */
function naming(action: string, work: () => void): void {
  try {
    work();
  } catch (error) {
    throw new Error(`${action}: ${(error as Error).message}`, { cause: error });
  }
}

/** Undoes what `create` did. */
function destroy(store: OciStore, record: OciRecord): void {
  const until = performance.now() + stopLimitMs;
  thaw(record.cgroup);
  for (let left = ownProcesses(record); left.length > 0 && performance.now() < until; left = ownProcesses(record)) {
    for (const pid of left) kill(pid, SIGKILL);
    pause(2);
  }
  while (record.cgroup.made.some((path) => existsSync(path)) && performance.now() < until) {
    removeCgroup(record.cgroup);
    if (isEmptyOfOurs(record.cgroup)) break;
    pause(2);
  }
  if (record.mountsOnHost && record.pid !== 0) unmountOnHost(record.rootPath);
  store.remove();
}

/** Whether what is left of it belongs to others: parents that more than one container shares. */
function isEmptyOfOurs({ directories, made }: OciCgroup): boolean {
  return directories.every(({ path }) => !made.includes(path) || !existsSync(path));
}

function unmountOnHost(rootPath: string): void {
  trySyscall("umount2", cString(rootPath), MNT_DETACH);
}

function runPoststop(config: OciConfig, record: OciRecord, { warn, environment }: Callers): void {
  for (const [i, hook] of (config.hooks?.poststop ?? []).entries()) {
    try {
      const state = stateOf(record, "stopped", config.annotations);
      naming("Cannot clean up all of the container", () =>
        runHook(`poststop hook #${i}`, hook, { state, callers: environment }),
      );
    } catch (error) {
      warn((error as Error).message);
    }
  }
}
