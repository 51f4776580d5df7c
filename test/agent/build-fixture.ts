/** Jobs whose steps build images: a registry with a base image, a host, workspaces with files. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { vi } from "vitest";
import { executeJob, type JobOptions, type JobResult } from "../../agent/index.ts";
import { type JobSpec, parsePipeline } from "../../pipelines/index.ts";
import { Host, type HostOptions, RegistryClient } from "../../runtime/index.ts";
import { busyboxLayer, writeLayout } from "../build/build-fixture.ts";
import { DebianRegistry } from "../runtime/registry-fixture.ts";

export interface JobRun extends JobResult {
  /** Of each step, what its log holds. */
  readonly logs: readonly string[];
  readonly problems: readonly string[];
}

export class BuildStepFixture implements AsyncDisposable {
  readonly directory: string;
  readonly host: Host;
  readonly registry: DebianRegistry;
  readonly client = new RegistryClient({});
  #count = 0;

  private constructor(directory: string, host: Host, registry: DebianRegistry) {
    this.directory = directory;
    this.host = host;
    this.registry = registry;
    const layout = join(directory, "base");
    writeLayout(layout, { layers: [busyboxLayer()] });
    registry.skopeo("copy", "--dest-tls-verify=false", `oci:${layout}`, `docker://${this.base}`);
  }

  static async open(options: Partial<HostOptions> = {}): Promise<BuildStepFixture> {
    const directory = mkdtempSync(join(tmpdir(), "slipway-build-step-"));
    const registry = await DebianRegistry.start();
    return new BuildStepFixture(
      directory,
      await Host.open({ stateDir: join(directory, "state"), ...options }),
      registry,
    );
  }

  /** An image with busybox. */
  get base(): string {
    return `${this.registry.host}/base:1`;
  }

  workspace(files: Readonly<Record<string, string>>): string {
    const directory = join(this.directory, `workspace-${++this.#count}`);
    mkdirSync(directory);
    for (const [name, content] of Object.entries(files)) {
      mkdirSync(dirname(join(directory, name)), { recursive: true });
      writeFileSync(join(directory, name), content.replaceAll("BASE", this.base));
    }
    return directory;
  }

  /** The jobs of a pipeline; `REGISTRY` and `BASE` in it stand for the test's. */
  jobs(pipeline: string): readonly JobSpec[] {
    const text = pipeline.replaceAll("REGISTRY", this.registry.host).replaceAll("BASE", this.base);
    const { pipeline: parsed, diagnostics } = parsePipeline(text);
    if (parsed === undefined) throw new Error(JSON.stringify(diagnostics));
    return parsed.jobs;
  }

  /** Runs one job whose steps are a YAML list. */
  async run(
    steps: string,
    files: Readonly<Record<string, string>> | string,
    options: Partial<JobOptions> & { readonly onOutput?: (text: string) => void } = {},
  ): Promise<JobRun> {
    const [job] = this.jobs(`network: none\nresources: { memory: 512MiB }\njobs:\n  job:\n    steps:\n${steps}`);
    return await this.runJob(job as JobSpec, files, options);
  }

  async runJob(
    job: JobSpec,
    files: Readonly<Record<string, string>> | string,
    { onOutput, ...options }: Partial<JobOptions> & { readonly onOutput?: (text: string) => void } = {},
  ): Promise<JobRun> {
    const logs = job.steps.map(() => "");
    const problems: string[] = [];
    const result = await executeJob(job, {
      host: this.host,
      id: `build-step-${process.pid}-${++this.#count}`,
      workspace: { dir: typeof files === "string" ? files : this.workspace(files) },
      variables: { SLIPWAY_COMMIT: "c0ffee" },
      registry: this.client,
      reporter: {
        stepOutput: (index, _, bytes) => {
          const text = Buffer.from(bytes).toString();
          logs[index] += text;
          onOutput?.(text);
        },
        problem: ({ message }) => problems.push(message),
      },
      ...options,
    });
    return { ...result, logs, problems };
  }

  /** Workspaces are removed beside what comes next. @throws {Error} If jobs have left behind what they should not. */
  async expectClean(): Promise<void> {
    await vi.waitFor(
      () => {
        const left = this.#leftovers();
        if (left.length > 0) throw new Error(`left behind: ${left.join(", ")}`);
      },
      { timeout: 10_000, interval: 20 },
    );
  }

  #leftovers(): string[] {
    const { stateDir, imageStoreDir } = this.host;
    const list = (path: string) => (existsSync(path) ? readdirSync(path) : []).map((name) => `${path}/${name}`);
    return [
      ...list(join(stateDir, "containers")),
      ...list(join(stateDir, "workspaces")),
      ...list(join(imageStoreDir, "tmp")),
      ...list(join(stateDir, "build")).filter((name) => !/\/(?:caches|empty)$/.test(name)),
    ];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
    this.client[Symbol.dispose]();
    await this.registry[Symbol.asyncDispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
