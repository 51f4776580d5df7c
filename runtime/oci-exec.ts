/** A further process in an OCI container that runs. */
import { OwnedDescriptors, PlacedDescriptors } from "./descriptors.ts";
import { cgroupFiles, differingNamespaces } from "./join-target.ts";
import { findCgroupMounts, subCgroups } from "./oci-cgroup.ts";
import { MFD_CLOEXEC, SIGKILL, O_WRONLY } from "./linux.ts";
import type { OciConfig, OciProcess } from "./oci-config.ts";
import {
  connectAgent,
  connectUnix,
  inheritStdio,
  sendPidFd,
  setLimits,
  writeMemory,
  writePidFile,
} from "./oci-container.ts";
import { ociMessage, planOciExec } from "./oci-plan.ts";
import { closeInherited, cpuMask } from "./oci-process.ts";
import { planProcess, type Warn } from "./oci-process-plan.ts";
import { ProgramLink } from "./oci-program-link.ts";
import { agentMessage, agentPath } from "./oci-seccomp-agent.ts";
import { type OciRecord, OciStore, stateOf } from "./oci-state.ts";
import { kill } from "./reaper.ts";
import { startProgram } from "./start-program.ts";
import { cString, open, syscall, trySyscall } from "./syscall.ts";

export interface ExecOptions {
  readonly root: string;
  readonly id: string;
  /** Completes or replaces the process of the configuration. */
  readonly process: (config: OciConfig) => OciProcess;
  readonly pidFile?: string;
  readonly consoleSocket?: string;
  readonly consoleFd?: number;
  /** Receives a pidfd of it. */
  readonly pidfdSocket?: string;
  /** Cgroups below the container's to be in, each `PATH` or `CONTROLLER,CONTROLLER:PATH`. */
  readonly subCgroups?: readonly string[];
  /** The terminal has been sent, the program has not been started. */
  readonly onTerminal?: () => void;
  readonly preserveFds: readonly number[];
  /** In a paused container the process waits until that is resumed; this call does, too. @default false */
  readonly acceptsPaused?: boolean;
  readonly warn: Warn;
}

const action = "start a process in the container";

/** Starts the process and returns its id; it is the caller's child. @throws {Error} If it cannot be started. */
export function execInContainer(options: ExecOptions): number {
  const store = new OciStore(options.root, options.id);
  const record = store.read();
  const status = store.status(record);
  if (status !== "running" && status !== "created" && !(status === "paused" && options.acceptsPaused)) {
    throw new Error(
      `Cannot execute in container "${options.id}": it is ${status}, not running${status === "paused" ? "; resume it, or use --ignore-paused" : ""}`,
    );
  }
  const config = store.readConfig();
  const process = options.process(config);
  const stateNow = stateOf(record, status, config.annotations);
  const descriptors = new OwnedDescriptors();
  const { own } = descriptors;
  let pid = 0;
  try {
    const pidFd = own(syscall("pidfd_open", record.pid, 0));
    const consoleFd =
      options.consoleFd ?? (options.consoleSocket === undefined ? undefined : own(connectUnix(options.consoleSocket)));
    if (process.terminal && consoleFd === undefined) {
      throw new Error("A terminal needs somebody who takes it: give --console-socket");
    }
    const status = descriptors.pipe();
    const go = descriptors.pipe();
    const placed = new PlacedDescriptors(options.preserveFds);
    const cgroups = processFiles(record, options).map((path) => placed.add(own(open(path, O_WRONLY))));
    const at = [status.write, go.read, pidFd].map((fd) => placed.add(fd));
    const consoleAt = consoleFd === undefined ? undefined : placed.add(consoleFd);
    const planned = planProcess(process, config, {
      rootPath: `/proc/${record.pid}/root`,
      sibling: record.pid,
      options,
    });
    const agent = planned.seccomp === undefined ? undefined : agentPath(config, planned.seccomp);
    const agentSocket = agent === undefined ? undefined : own(connectAgent(agent));
    const agentState = own(syscall("memfd_create", cString("slipway-agent-state"), MFD_CLOEXEC));
    const agentAt = agentSocket === undefined ? undefined : [placed.add(agentSocket), placed.add(agentState)];
    const fix = (place: number | undefined) => placed.base + (place ?? 0);
    const statusFd = fix(at[0]);
    const affinity = process.execCPUAffinity;
    const mask = (which: "initial" | "final") => {
      const text = affinity?.[which];
      return text ? { [which]: cpuMask(text, `process.execCPUAffinity.${which}`) } : {};
    };
    const operations = [
      ...closeInherited(placed.others()),
      ...planOciExec({
        statusFd,
        goFd: fix(at[1]),
        pidFd: fix(at[2]),
        cgroupFds: cgroups.map(fix),
        namespaces: differingNamespaces(record.pid),
        ...(consoleAt === undefined ? {} : { consoleFd: fix(consoleAt) }),
        process: {
          ...planned,
          ...(agentAt === undefined ? {} : { seccompAgent: { socketFd: fix(agentAt[0]), stateFd: fix(agentAt[1]) } }),
        },
        linux: config.linux,
        affinity: { ...mask("initial"), ...mask("final") },
      }),
    ];
    const link = new ProgramLink(operations, { statusFd, status: status.read, go: go.write }, action);
    inheritStdio();
    const stage = startProgram(link.file, "slipway-exec", placed.pairs());
    descriptors.close(status.write, go.read);
    pid = link.expect(ociMessage.initPid);
    trySyscall("wait4", stage, Buffer.alloc(4), 0, 0);
    if (agentAt !== undefined) {
      writeMemory(agentState, agentMessage(config, pid, stateNow));
    }
    link.go();
    link.expect(ociMessage.ready);
    setLimits(pid, process);
    if (options.pidfdSocket !== undefined) sendPidFd(options.pidfdSocket, pid);
    options.onTerminal?.();
    link.go();
    link.expectExecution();
    if (options.pidFile !== undefined) writePidFile(options.pidFile, pid);
    return pid;
  } catch (error) {
    if (pid !== 0) {
      kill(pid, SIGKILL);
      trySyscall("wait4", pid, Buffer.alloc(4), 0, 0);
    }
    throw error;
  } finally {
    descriptors.closeAll();
  }
}

/**
 * Where a further process joins cgroups: those in which the container's is now, unless the caller names others. In a hierarchy in
 * which the container has none of its own, that would be whoever's created it: there it stays where its caller is, too.
 */
function processFiles({ pid, cgroup }: OciRecord, { subCgroups: wanted = [] }: ExecOptions): string[] {
  const isItsOwn = (mountPoint: string) => cgroup.directories.some(({ path }) => path.startsWith(`${mountPoint}/`));
  if (wanted.length === 0) {
    return cgroupFiles(
      pid,
      findCgroupMounts().filter(({ mountPoint }) => isItsOwn(mountPoint)),
    );
  }
  return subCgroups(cgroup, wanted).map((path) => `${path}/cgroup.procs`);
}
