/** RUN: a command in a container whose changes become a layer. */
import { chmodSync, chownSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import {
  type ContainerResult,
  diskOwner,
  ExecError,
  ImageError,
  type LayerSummary,
  runContainer,
  type StepMount,
} from "../runtime/index.ts";
import type { LayerDraft } from "./build-cache.ts";
import { cacheKey } from "./key.ts";
import { hostname, type OpenMachine } from "./machine.ts";
import { type OperationContext, OperationError, type OperationPlace, type OperationPlan } from "./operation.ts";
import { formatPlatform, hostPlatform } from "./platform.ts";
import { type PlannedMount, planMount } from "./run-mounts.ts";
import { proxyArgs, type RunOperation } from "./stage-state.ts";
import type { MountTarget } from "./stubs.ts";

/** Finds out what the command depends on: what stands below, the command, its variables, and what is mounted. */
export async function planRun(
  operation: RunOperation,
  place: OperationPlace,
  context: OperationContext,
): Promise<OperationPlan> {
  if (operation.network === "host" && context.machine.networkKind !== "host") {
    throw new OperationError("--network=host is not allowed in this build", {
      suggestion: "let the step itself have it: network: host",
    });
  }
  const mounts = await Promise.all(operation.mounts.map((mount) => planMount(mount, { operation, place, context })));
  const { args, script, cwd, user, network } = operation;
  const env = Object.entries(operation.env).filter(([name]) => !proxyArgs.includes(name));
  const key = cacheKey(place.parentKey, {
    run: args,
    script,
    env,
    cwd,
    user,
    network,
    ...(context.extraHosts.length > 0 && { hosts: context.extraHosts }),
    mounts: mounts.map((mount) => mount.key),
  });
  return {
    key,
    make: (draft) =>
      context.commands.use(() => new Command(operation, { place, context, mounts, draft }).run(), context.signal),
  };
}

class Command {
  readonly #operation: RunOperation;
  readonly #place: OperationPlace;
  readonly #context: OperationContext;
  readonly #mounts: readonly PlannedMount[];
  readonly #draft: LayerDraft;

  constructor(
    operation: RunOperation,
    parts: {
      readonly place: OperationPlace;
      readonly context: OperationContext;
      readonly mounts: readonly PlannedMount[];
      readonly draft: LayerDraft;
    },
  ) {
    this.#operation = operation;
    this.#place = parts.place;
    this.#context = parts.context;
    this.#mounts = parts.mounts;
    this.#draft = parts.draft;
  }

  async run(): Promise<LayerSummary> {
    const { workers, view, signal, machine } = this.#context;
    const opened = await machine.open();
    await using stack = new AsyncDisposableStack();
    const planned = [];
    for (const mount of this.#mounts) planned.push(await mount.open({ draft: this.#draft, stack }));
    const files = this.#networkFiles(opened);
    const mounts = [...files, ...this.#script(), ...planned.flatMap(({ mounts: each }) => each)];
    const { user, paths } = await workers.run(
      "container",
      {
        layers: this.#place.layers,
        user: this.#operation.user,
        targets: [...standardTargets, { path: this.#operation.cwd, isDirectory: true }, ...mounts.map(targetOf)],
        directory: this.#draft.scratch("stubs"),
        view,
      },
      signal,
    );
    const resolved = paths.slice(standardTargets.length + 1);
    const env = Object.assign({ HOME: user.home }, this.#operation.env, ...planned.map((each) => each.env));
    const writableDir = this.#draft.scratch("run");
    mkdirSync(`${writableDir}/upper`, { recursive: true, mode: 0o755 });
    await this.#execute(opened, {
      user,
      env,
      writableDir,
      mounts: mounts
        .map(({ mount }, index) => ({ ...mount, target: resolved[index] as string }))
        .sort((a, b) => depth(a.target) - depth(b.target)),
    });
    const upper = `${writableDir}/upper`;
    const summary = await workers.run(
      "adopt",
      { upper, base: opened.uidRange.base, size: opened.uidRange.size },
      signal,
    );
    renameSync(upper, this.#draft.files);
    return summary;
  }

  async #execute(
    { host, uidRange, network }: OpenMachine,
    container: {
      readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
      readonly env: Readonly<Record<string, string>>;
      readonly mounts: readonly StepMount[];
      readonly writableDir: string;
    },
  ): Promise<void> {
    const { resources, reporter, signal, cache } = this.#context;
    const { args, cwd, network: wanted } = this.#operation;
    const { step, layers, platform } = this.#place;
    const { user, env, mounts, writableDir } = container;
    try {
      await using running = await runContainer(host, {
        id: `build-${crypto.randomUUID()}`,
        image: { reference: "build", layers, binds: [], config: { env: {} } },
        topLayer: this.#draft.scratch("stubs"),
        uidRange,
        user: { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids },
        args,
        env,
        cwd,
        hostname,
        mounts,
        writableDir,
        resources: cache.limit(resources),
        network: wanted === "none" ? "none" : network,
        output: (stream, bytes) => reporter.output?.(step, { stream, bytes }),
        signal,
      });
      reporter.command?.(running);
      const result = await running.result;
      reporter.used?.(step, result.usage);
      signal.throwIfAborted();
      if (result.reason !== "exited" || result.exitCode !== 0) throw commandFailed(result);
    } catch (error) {
      if (error instanceof ImageError) throw new OperationError(error.message, { cause: error });
      const way = isInTheWay.exec((error as Error).message)?.[1];
      if (way !== undefined) throw new OperationError(`the command cannot be started: ${way}`, { cause: error });
      if (!(error instanceof ExecError)) throw error;
      const isForeign = platform.architecture !== hostPlatform().architecture && error.code === "ENOEXEC";
      throw new OperationError(error.message, {
        cause: error,
        exitCode: error.code === "ENOENT" ? 127 : 126,
        ...(isForeign && {
          suggestion: `this machine runs no programs for ${formatPlatform(platform)}: register an emulator with binfmt_misc (Debian: qemu-user-static), or let a stage FROM --platform=$BUILDPLATFORM do the work`,
        }),
      });
    }
  }

  /** /etc/hosts and resolv.conf, which the command sees and may change, and the image does not. */
  #networkFiles({ host, network }: OpenMachine): CommandMount[] {
    const { extraHosts } = this.#context;
    const isJob = typeof network === "object" && this.#operation.network !== "none";
    const skeleton = (name: string) => readFileSync(`${host.skeletonDir}/etc/${name}`, "utf8");
    const contents = {
      hosts: [isJob ? network.hosts(hostname) : skeleton("hosts"), ...extraHosts.map((line) => `${line}\n`)].join(""),
      "resolv.conf": isJob ? network.resolvConf : skeleton("resolv.conf"),
    };
    return Object.entries(contents).map(([name, content]) => {
      const source = this.#draft.scratch(`etc-${name}`);
      this.#write(source, content, 0o644);
      return { mount: { type: "bind", source, target: `/etc/${name}` }, isDirectory: false };
    });
  }

  /** The command's user is any user: the umask has no say. */
  #write(path: string, content: string, mode: number): void {
    writeFileSync(path, content);
    chmodSync(path, mode);
    chownSync(path, diskOwner(0), diskOwner(0));
  }

  #script(): CommandMount[] {
    const { script } = this.#operation;
    if (script === undefined) return [];
    const source = this.#draft.scratch("script");
    this.#write(source, script.content, 0o755);
    return [{ mount: { type: "bind", source, target: script.path, readonly: true }, isDirectory: false }];
  }
}

/** A mount of a command, before it is known where its target is in the image. */
export interface CommandMount {
  readonly mount: StepMount;
  readonly isDirectory: boolean;
}

/** What the image has where the working directory, or what is mounted, should be: a link into /proc, for example. */
const isInTheWay =
  /^Cannot start container [\w.-]+: ((?:open|make (?:directory|file)) ".*" in the container: E[A-Z]+)$/s;

/** What every container needs. */
const standardTargets: readonly MountTarget[] = ["/dev", "/proc", "/sys"].map((path) => ({ path, isDirectory: true }));

function targetOf({ mount, isDirectory }: CommandMount): MountTarget {
  return { path: mount.target, isDirectory };
}

function depth(path: string): number {
  return path.split("/").filter((component) => component !== "").length;
}

function commandFailed({ reason, exitCode, signal, message }: ContainerResult): OperationError {
  const what =
    reason === "exited"
      ? `the command failed with exit code ${exitCode}`
      : `the command was ended: ${message ?? signal ?? reason}`;
  return new OperationError(what, { exitCode });
}
