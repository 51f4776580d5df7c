/** What `RUN --mount` names, found and made ready for a container. */
import { release } from "node:os";
import { chmodSync, chownSync, lstatSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { diskOwner, fileAt, tryLock } from "../runtime/index.ts";
import type { LayerDraft } from "./build-cache.ts";
import type { SelectionSpec, TreeSpec } from "./file-tasks.ts";
import { type OperationContext, OperationError, type OperationPlace, treeOf } from "./operation.ts";
import { cleanPath } from "./pattern.ts";
import type { RunMount } from "./run-mount.ts";
import type { CommandMount } from "./run-operation.ts";
import { copySelection, layerOf, timesOf } from "./selection-layer.ts";
import { forwardAgent } from "./ssh-agent.ts";
import type { RunOperation } from "./stage-state.ts";

/** A mount whose source is known. */
export interface PlannedMount {
  /** What of it makes another layer. */
  readonly key: unknown;
  /** Makes it ready; `stack` takes it down when the command has ended. */
  open(use: { readonly draft: LayerDraft; readonly stack: AsyncDisposableStack }): Promise<OpenedMount>;
}

export interface OpenedMount {
  readonly mounts: readonly CommandMount[];
  readonly env?: Readonly<Record<string, string>>;
}

interface MountContext {
  readonly operation: RunOperation;
  readonly place: OperationPlace;
  readonly context: OperationContext;
}

/** Finds out what a mount depends on. */
export async function planMount(mount: RunMount, on: MountContext): Promise<PlannedMount> {
  switch (mount.type) {
    case "bind":
      return await planBind(mount, on);
    case "cache":
      return planCache(mount, on);
    case "tmpfs": {
      const { sizeBytes } = mount;
      const target = targetOf(mount, on);
      const size = sizeBytes === undefined || sizeBytes === 0 ? {} : { sizeBytes };
      return {
        key: ["tmpfs", target],
        open: () =>
          Promise.resolve({ mounts: [{ mount: { type: "tmpfs", target, mode: 0o755, ...size }, isDirectory: true }] }),
      };
    }
    case "secret":
      return planSecret(mount, on);
    case "ssh":
      return planSsh(mount, on);
  }
}

/** Absolute; a relative one is seen from the working directory. */
function targetOf({ target = "" }: RunMount, { operation }: MountContext): string {
  const path = cleanPath(target.startsWith("/") ? target : `${operation.cwd}/${target}`);
  if (path === "/") throw new OperationError("nothing can be mounted on / itself");
  return path;
}

/** Files of the context, a stage or an image: a copy in the cache, which nobody can change. */
async function planBind(mount: RunMount, on: MountContext): Promise<PlannedMount> {
  const { place, context } = on;
  const { workers, cache, view, signal } = context;
  const target = targetOf(mount, on);
  const from = mount.from === undefined || mount.from === "" ? undefined : mount.from;
  const tree: TreeSpec =
    from === undefined ? { kind: "context", ...context.context } : treeOf(await place.source(from), from);
  const selection: SelectionSpec = { tree, sources: [mount.source ?? "."], parents: false, excludes: [] };
  const found = await workers.run("digest", { selection, view, maxBytes: cache.diskBytes }, signal);
  const { digest, isDirectory } = found;
  // A directory's content is at the top, a file in there by a name of ours.
  const sourceIn = (directory: string) => (isDirectory ? directory : `${directory}/file`);
  return {
    key: ["bind", target, digest, ...Object.values(timesOf(selection))],
    async open({ draft }) {
      if (!mount.readonly) {
        // What is written is thrown away.
        const upper = draft.scratch(`bind-${crypto.randomUUID()}`);
        await copySelection(
          { selection, found },
          { upper, work: draft.scratch(`work-${crypto.randomUUID()}`) },
          context,
        );
        return { mounts: [{ mount: { type: "bind", source: sourceIn(upper), target }, isDirectory }] };
      }
      const directory = (await layerOf(selection, found, context)).directory ?? view.emptyDir;
      return {
        mounts: [{ mount: { type: "bind", source: sourceIn(directory), target, readonly: true }, isDirectory }],
      };
    },
  };
}

function planCache(mount: RunMount, on: MountContext): PlannedMount {
  const { context, place } = on;
  const { cacheMounts, workers, view, signal } = context;
  const target = targetOf(mount, on);
  const { uid = 0, gid = 0, mode = 0o755, sharing } = mount;
  // What is in it is no reason to run a command again, but another directory is.
  const id = mount.id ?? target;
  // As in BuildKit, who wants other owners or other files to begin with has another one: the first one's were no use to him.
  const begins = [mount.uid, mount.gid, mount.mode, mount.from, mount.source];
  const name = begins.every((each) => each === undefined) ? id : JSON.stringify([id, ...begins]);
  const seed = async (directory: string, { draft, from }: { readonly draft: LayerDraft; readonly from: string }) => {
    const tree = treeOf(await place.source(from), from);
    const selection = { tree, sources: [mount.source ?? "."], parents: false, excludes: [] };
    const { fingerprint } = await workers.run("digest", { selection, view, maxBytes: context.cache.diskBytes }, signal);
    const into = { layers: [], upper: directory, work: draft.scratch(`work-${crypto.randomUUID()}`) };
    await workers.run(
      "copy",
      {
        into,
        copy: { selection, fingerprint, destination: "/", files: [], maxBytes: context.cache.leftBytes },
        view,
      },
      signal,
    );
  };
  return {
    key: ["cache", target, name],
    async open({ draft, stack }) {
      const { from } = mount;
      const isSeeded = from !== undefined && from !== "scratch";
      const cache = stack.use(
        await cacheMounts.take(name, {
          label: id,
          sharing,
          uid,
          gid,
          mode,
          ...(isSeeded && { seed: (directory: string) => seed(directory, { draft, from }) }),
          scratch: draft.scratch,
          signal,
        }),
      );
      return {
        mounts: [
          { mount: { type: "bind", source: cache.directory, target, readonly: mount.readonly }, isDirectory: true },
        ],
      };
    },
  };
}

function planSecret(mount: RunMount, on: MountContext): PlannedMount {
  const id = mount.id ?? mount.source ?? basename(mount.target ?? "");
  const { secrets } = on.context;
  const source = secrets.get(id);
  if (source === undefined && mount.required) {
    throw new OperationError(`there is no secret ${JSON.stringify(id)}`, {
      suggestion: `give it with --secret id=${id},src=…`,
    });
  }
  const file = mount.env === undefined || mount.target !== undefined;
  const target = file ? targetOf({ ...mount, target: mount.target ?? `/run/secrets/${basename(id)}` }, on) : undefined;
  const variable = mount.env === "" ? id : mount.env;
  return {
    // Not its value: a secret is no part of what is made.
    key: ["secret", id, target ?? "", variable ?? ""],
    async open({ draft, stack }) {
      if (source === undefined) return { mounts: [] };
      const value = await source();
      const env = variable === undefined ? {} : { [variable]: textOf(id, value) };
      if (target === undefined) return { mounts: [], env };
      const path = `${secretDirectory(draft, stack)}/secret`;
      writeFileSync(path, value, { mode: 0o400 });
      chmodSync(path, mount.mode ?? 0o400);
      chownSync(path, diskOwner(mount.uid ?? 0), diskOwner(mount.gid ?? 0));
      return { mounts: [{ mount: { type: "bind", source: path, target, readonly: true }, isDirectory: false }], env };
    },
  };
}

function textOf(id: string, value: Uint8Array): string {
  const text = Buffer.from(value).toString();
  if (!text.includes("\0")) return text;
  throw new OperationError(`the secret ${JSON.stringify(id)} holds a NUL and cannot be a variable`);
}

/** In memory where the kernel can map ids there, so that it is never on a disk; else in the layer's own scratch space. */
function secretDirectory(draft: LayerDraft, stack: AsyncDisposableStack): string {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  const isMapped = major > 6 || (major === 6 && minor >= 3);
  const shm = isMapped ? statSync(memoryDir, { throwIfNoEntry: false }) : undefined;
  if (shm?.isDirectory() === true) {
    sweepSecrets();
    const directory = mkdtempSync(`${memoryDir}/${secretPrefix}`);
    stack.defer(() => rmSync(directory, { recursive: true, force: true }));
    const lock = tryLock(directory, "shared");
    if (typeof lock === "number") stack.defer(() => fileAt.closeFile(lock));
    return directory;
  }
  const directory = mkdtempSync(draft.scratch("secret-"));
  stack.defer(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Removes secrets that builds have left which were killed: until then they are there for whoever is root, and in memory. */
export function sweepSecrets(): void {
  let names: string[];
  try {
    names = readdirSync(memoryDir);
  } catch {
    return; // there is no such directory
  }
  for (const name of names) if (name.startsWith(secretPrefix)) sweepSecret(`${memoryDir}/${name}`);
}

function sweepSecret(directory: string): void {
  try {
    const stat = lstatSync(directory);
    // Every user of the machine may make directories there, and change what is below them while it is deleted.
    if (!stat.isDirectory() || stat.uid !== process.geteuid?.() || (stat.mode & 0o77) !== 0) return;
    // One that has just been made may not be locked yet.
    if (Date.now() - stat.mtimeMs < unlockedMs) return;
    const lock = tryLock(directory, "exclusive");
    if (typeof lock !== "number") return;
    try {
      rmSync(directory, { recursive: true, force: true });
    } finally {
      fileAt.closeFile(lock);
    }
  } catch {
    // Its build, or another one that sweeps, has been faster.
  }
}

const memoryDir = "/dev/shm";
const secretPrefix = "slipway-secret-";
const unlockedMs = 10_000;

function planSsh(mount: RunMount, on: MountContext): PlannedMount {
  const id = mount.id ?? "default";
  const { ssh } = on.context;
  const agent = ssh.get(id);
  if (agent === undefined && mount.required) {
    throw new OperationError(`there is no ssh agent ${JSON.stringify(id)}`, { suggestion: "give it with --ssh" });
  }
  const target = targetOf({ ...mount, target: mount.target ?? `/run/buildkit/ssh_agent.${id}` }, on);
  return {
    key: ["ssh", id, target],
    async open({ draft, stack }) {
      if (agent === undefined) return { mounts: [] };
      // A command may have several.
      const path = draft.scratch(`ssh-agent-${crypto.randomUUID()}`);
      stack.use(await forwardAgent(agent, path));
      chmodSync(path, mount.mode ?? 0o600);
      chownSync(path, diskOwner(mount.uid ?? 0), diskOwner(mount.gid ?? 0));
      return {
        mounts: [{ mount: { type: "bind", source: path, target }, isDirectory: false }],
        env: { SSH_AUTH_SOCK: target },
      };
    },
  };
}
