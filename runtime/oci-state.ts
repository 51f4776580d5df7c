/** What is known of OCI containers between two commands: one directory per container below `--root`. */
import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import type { OciCgroup } from "./oci-cgroup.ts";
import { type OciConfig, parseOciConfig } from "./oci-config.ts";
import { isFrozen } from "./oci-freezer.ts";
import { findOwnIds } from "./own-ids.ts";

export const ociVersion = "1.3.0";

/** The specification's, and one of runc's. */
export type OciStatus = "creating" | "created" | "running" | "paused" | "stopped";

/** The state that the specification defines, as commands print it and hooks read it. */
export interface OciState {
  readonly ociVersion: string;
  readonly id: string;
  readonly status: OciStatus;
  readonly pid: number;
  readonly bundle: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** state.json; plain data. */
export interface OciRecord {
  readonly id: string;
  readonly bundle: string;
  readonly rootPath: string;
  /** RFC 3339. */
  readonly created: string;
  /** 0 until there is one. */
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: an id alone may mean another process by now. */
  readonly pidStart: string;
  readonly cgroup: OciCgroup;
  /** The container's mounts are the host's: to be unmounted when it is deleted. */
  readonly mountsOnHost: boolean;
  /** What may still fail when it starts: names of operations, the first with this number. */
  readonly operations: { readonly first: number; readonly names: readonly string[] };
}

/** An id names a directory. @throws {Error} */
export function checkId(id: string): string {
  const wrong = /[^A-Za-z0-9_+.-]/u.exec(id)?.[0];
  const reason =
    wrong !== undefined
      ? `invalid character ${JSON.stringify(wrong)}, letters, digits and _+-. are supported`
      : id === "" || id.length > 1024
        ? "it must have 1 to 1024 characters"
        : id === "." || id === ".."
          ? "it is invalid as the name of a directory"
          : undefined;
  if (reason !== undefined) {
    throw new Error(`Cannot use container ID ${JSON.stringify(id.slice(0, 1024))}: ${reason}`);
  }
  return id;
}

/** One container's directory. */
export class OciStore {
  readonly id: string;
  readonly directory: string;

  constructor(root: string, id: string) {
    this.id = checkId(id);
    this.directory = `${root}/${id}`;
  }

  get startFifo(): string {
    return `${this.directory}/start`;
  }

  get answerFifo(): string {
    return `${this.directory}/answer`;
  }

  /** What hooks in the container say; read if one fails. */
  get hookOutput(): string {
    return `${this.directory}/hook-output`;
  }

  /** Reserves the id. @throws {Error} If it is taken. */
  make(): void {
    try {
      mkdirSync(this.directory.slice(0, this.directory.lastIndexOf("/")), { recursive: true, mode: 0o711 });
      mkdirSync(this.directory, { mode: 0o700 });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      const reason =
        code === "EEXIST"
          ? "there is one with this id"
          : `its state cannot be kept in "${this.directory}": ${code}; name a directory of yours with --root or, without root, XDG_RUNTIME_DIR`;
      throw new Error(`Cannot create container "${this.id}": ${reason}`, { cause: error });
    }
  }

  writeConfig(text: string): void {
    writeFileSync(`${this.directory}/config.json`, text, { mode: 0o600 });
  }

  /** As it was when the container was created. */
  readConfig(): OciConfig {
    return parseOciConfig(readFileSync(`${this.directory}/config.json`, "utf8"));
  }

  write(record: OciRecord): void {
    writeFileSync(`${this.directory}/state.json.new`, JSON.stringify(record), { mode: 0o600 });
    renameSync(`${this.directory}/state.json.new`, `${this.directory}/state.json`);
  }

  /** The uid of who created it; undefined if there is none. */
  get owner(): number | undefined {
    return lstatSync(this.directory, { throwIfNoEntry: false })?.uid;
  }

  /**
   * For who acts on it: what to kill, to remove and to run as a hook is in it.
   *
   * @throws {Error} If there is no such container, or it is another user's.
   */
  read(): OciRecord {
    const { owner } = this;
    if (owner === undefined || owner === process.geteuid?.()) return this.look();
    throw new Error(`Container "${this.id}" belongs to user ${owner}: do this as that user`);
  }

  /** For who only shows it. @throws {Error} If there is no such container. */
  look(): OciRecord {
    try {
      return JSON.parse(readFileSync(`${this.directory}/state.json`, "utf8")) as OciRecord;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      throw new Error(`Container "${this.id}" does not exist`, { cause: error });
    }
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** What the container is doing now. */
  status(record: OciRecord): OciStatus {
    if (record.pid === 0) return "creating";
    if (startTime(record.pid) !== record.pidStart) return "stopped";
    if (isFrozen(record.cgroup)) return "paused";
    return readdirSync(this.directory).includes("start") ? "created" : "running";
  }

  state(record: OciRecord, status = this.status(record)): OciState {
    const { annotations } = this.readConfig();
    return stateOf(record, status, annotations);
  }
}

export function stateOf(
  { id, bundle, pid }: Pick<OciRecord, "id" | "bundle" | "pid">,
  status: OciStatus,
  annotations: ReadonlyMap<string, string> | undefined,
): OciState {
  return {
    ociVersion,
    id,
    status,
    pid: status === "stopped" ? 0 : pid,
    bundle,
    ...(annotations === undefined ? {} : { annotations: Object.fromEntries(annotations) }),
  };
}

/** When a process started, in the kernel's own count; undefined if it is gone or a zombie. */
export function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" || fields[0] === "X" ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** The containers below a root. */
export function listStores(root: string): OciStore[] {
  try {
    return readdirSync(root).map((id) => new OciStore(root, id));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

/**
 * As runc's: one who is root only in a user namespace, as Podman's runtime is for a user, is that user unless he says not. A
 * relative directory would be another one in each working directory. @see XDG Base Directory Specification
 */
export function defaultRoot({ XDG_RUNTIME_DIR, USER }: NodeJS.ProcessEnv): string {
  const isRoot = process.geteuid?.() === 0 && (USER === "root" || findOwnIds().all);
  return isRoot || !XDG_RUNTIME_DIR?.startsWith("/") ? "/run/slipway/oci" : `${XDG_RUNTIME_DIR}/slipway/oci`;
}
