/** A host for tests: its own state directory, and containers whose output is collected. */
import { execFileSync } from "node:child_process";
import { existsSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { firstRange, shiftTree } from "../../runtime/file-owners.ts";
import { containerId } from "../../runtime/own-ids.ts";
import {
  type Container,
  type ContainerConfig,
  type ContainerResult,
  Host,
  type HostOptions,
  type Image,
  isRootless,
  type PreparedConfig,
  resolveImage,
  runContainer,
  type UidRange,
} from "../../runtime/index.ts";

export interface Ended extends ContainerResult {
  readonly stdout: string;
  readonly stderr: string;
}

export class TestHost implements AsyncDisposable {
  readonly host: Host;
  readonly range: UidRange;
  readonly image: Image;
  readonly directory: string;
  #sequence = 0;

  private constructor(directory: string, host: Host, image: Image) {
    this.directory = directory;
    this.host = host;
    this.range = host.claimUidRange();
    this.image = image;
  }

  static async open(options: Partial<HostOptions> = {}): Promise<TestHost> {
    const directory = mkdtempSync(join(tmpdir(), "slipway-runtime-"));
    const host = await Host.open({ stateDir: join(directory, "state"), ...options }).catch((error: unknown) => {
      rmSync(directory, { recursive: true });
      throw error;
    });
    const image = await resolveImage("host", { baseDir: directory, storeDir: host.imageStoreDir });
    return new TestHost(directory, host, image);
  }

  /** A fresh workspace directory. */
  workspace(): string {
    const workspace = join(this.directory, `workspace-${++this.#sequence}`);
    mkdirSync(workspace);
    return workspace;
  }

  /** Where something is mounted, as this process sees it, without what tests beside this one have mounted in directories of their own. */
  mountPoints(): string[] {
    const lines = readFileSync("/proc/self/mountinfo", "utf8").trimEnd().split("\n");
    const places = lines.map((line) => line.split(" ")[4] ?? "");
    return places.filter((path) => !path.startsWith(`${tmpdir()}/`) || path.startsWith(`${this.directory}/`));
  }

  /** Whose a file is, as containers of the range see it. */
  ownerOf(path: string, range: UidRange = this.range): number | undefined {
    const { uid } = lstatSync(path);
    return isRootless() ? containerId(range, uid) : uid;
  }

  prepared(options: Partial<PreparedConfig> = {}): PreparedConfig {
    const { workspace, image = this.image, uidRange = this.range } = options;
    for (const layer of image.layers) if (layer.startsWith(`${this.directory}/workspace-`)) adoptLayer(layer);
    if (workspace !== undefined && workspace.copyOnWrite !== true) giveTree(workspace.dir, uidRange);
    return {
      id: `test-${++this.#sequence}`,
      image: this.image,
      uidRange: this.range,
      resources: { memoryBytes: 256 << 20, cpu: 2, pids: 128 },
      network: "none",
      output: () => undefined,
      ...options,
    };
  }

  script(script: string, options: Partial<ContainerConfig> = {}): ContainerConfig {
    return {
      ...this.prepared(options),
      args: options.args ?? ["/bin/sh", "-e", "-c", script],
      env: options.env ?? { PATH: "/usr/local/bin:/usr/bin:/bin" },
    };
  }

  /** Runs a script to its end and until everything of it is gone. */
  async run(script: string, options: Partial<ContainerConfig> = {}): Promise<Ended> {
    const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
    const config = this.script(script, {
      output: (stream, chunk) => {
        output[stream].push(Buffer.from(chunk));
      },
      ...options,
    });
    const { workspace, uidRange } = config;
    if (workspace?.copyOnWrite === true) await this.host.workspaces.give(workspace, uidRange);
    const container: Container = await runContainer(this.host, config);
    const result = await container.result;
    await container[Symbol.asyncDispose]();
    return {
      ...result,
      stdout: Buffer.concat(output.stdout).toString(),
      stderr: Buffer.concat(output.stderr).toString(),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.range[Symbol.dispose]();
    await this.host[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Where mounts map no ids, a layer that a test has made gets those of layers on disk (file-owners.ts). */
export function adoptLayer(directory: string): void {
  if (isRootless()) shiftTree(directory, asInImages, firstRange());
}

/** Where mounts map no ids, a tree becomes that of a job, as `Workspaces.give` makes it. */
function giveTree(directory: string, range: UidRange): void {
  const path = existsSync(directory) ? lstatSync(directory) : undefined;
  if (!isRootless() || path === undefined || containerId(range, path.uid) !== undefined) return;
  execFileSync("chown", ["--recursive", "--no-dereference", `${range.base}:${range.base}`, "--", directory]);
}

const asInImages = { base: 0, mappings: [{ containerID: 0, hostID: 0, size: 65_536 }] };
