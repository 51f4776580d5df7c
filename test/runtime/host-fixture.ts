/** A host for tests: its own state directory, and containers whose output is collected. */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Container,
  type ContainerConfig,
  type ContainerResult,
  Host,
  type HostOptions,
  type Image,
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
    const host = await Host.open({ stateDir: join(directory, "state"), ...options });
    const image = await resolveImage("host", { baseDir: directory, storeDir: host.imageStoreDir });
    return new TestHost(directory, host, image);
  }

  /** A fresh workspace directory. */
  workspace(): string {
    const workspace = join(this.directory, `workspace-${++this.#sequence}`);
    mkdirSync(workspace);
    return workspace;
  }

  prepared(options: Partial<PreparedConfig> = {}): PreparedConfig {
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
