/** From the file's bytes to a checked pipeline with every default filled in. */
import { describeBuild } from "./build.ts";
import { DEFAULTS, LIMITS } from "./limits.ts";
import { type JobFields, type PipelineFields, pipelineShape, type StepFields } from "./language.ts";
import { checkNeeds } from "./needs.ts";
import type { Diagnostic, JobSpec, Pipeline, ServiceSpec, StepNetwork, StepSpec } from "./pipeline.ts";
import { Problems } from "./problems.ts";
import { formatBytes, formatDuration } from "./quantity.ts";
import type { DictionaryEntry } from "./collection.ts";
import { mergeEnvironments } from "./environment.ts";
import { describeRegistries, describeSecrets } from "./secret.ts";
import { resolveResources } from "./resources.ts";
import { buildReady, checkServices } from "./service.ts";
import { type Located, readNode } from "./shape.ts";
import { readSource, type Source, type Span } from "./source.ts";
import { nameSteps } from "./step-name.ts";
import { quote } from "./suggestion.ts";
import { parseSyntax } from "./syntax.ts";
import { buildTree } from "./tree.ts";
import { findVariables } from "./variables.ts";
import { everyEvent } from "./trigger.ts";

export interface ParsedPipeline {
  /** Absent if there is an error among the diagnostics. */
  readonly pipeline?: Pipeline;
  /** In file order. At most 50 and one that says how many more there are. */
  readonly diagnostics: readonly Diagnostic[];
}

/**
 * Parses a pipeline file and reports all that is wrong with it at once.
 *
 * Never throws, and takes bounded time and memory on any input: bytes that are not text, 10 MB of it, nesting without
 * end, aliases that explode.
 *
 * @param options.file What diagnostics call the file. @default ".slipway.yml"
 */
export function parsePipeline(source: string | Uint8Array, options: { readonly file?: string } = {}): ParsedPipeline {
  const file = options.file ?? DEFAULTS.file;
  const { source: text, fault } = readSource(source);
  const problems = new Problems(text);
  if (fault !== undefined) problems.error(fault.span, fault.message, fault.suggestion);
  const pipeline = fault === undefined ? readPipeline(text, problems) : undefined;
  const diagnostics = problems.toDiagnostics(file);
  return pipeline === undefined || problems.failed ? { diagnostics } : { pipeline, diagnostics };
}

function readPipeline(source: Source, problems: Problems): Pipeline | undefined {
  const document = parseSyntax(source, problems);
  if (document === undefined) return undefined;
  const root = buildTree(document, source, problems);
  if (root === undefined) return undefined;
  const start = { start: root.span.start, end: root.span.start + 1 };
  const fields = readNode(pipelineShape, root, { problems, owner: "", path: "", span: start });
  if (fields === undefined) return undefined;
  const jobs = fields.jobs?.value ?? [];
  if (problems.whole) checkNeeds(jobs, problems);
  const builder = new PipelineBuilder(fields, source, problems);
  const built = jobs.flatMap((job) => builder.buildJob(job));
  return {
    ...(fields.name !== undefined && { name: fields.name.value }),
    on: fields.on?.value ?? everyEvent,
    jobs: built,
  };
}

/** What a destination takes in a stored plan, about. */
const allowedBytes = 100;

/** Hands values down from pipeline to job to step and checks what only shows then. */
class PipelineBuilder {
  readonly #pipeline: PipelineFields;
  readonly #source: Source;
  readonly #problems: Problems;
  #bytes = 0;
  #tooLarge = false;

  constructor(pipeline: PipelineFields, source: Source, problems: Problems) {
    this.#pipeline = pipeline;
    this.#source = source;
    this.#problems = problems;
  }

  buildJob(entry: DictionaryEntry<JobFields>): JobSpec[] {
    const job = entry.value;
    if (job === undefined || this.#tooLarge) return [];
    const written = job.timeout ?? this.#pipeline.timeout;
    const timeoutMs = written?.value ?? DEFAULTS.jobTimeoutMs;
    const steps = job.steps?.value ?? [];
    const names = nameSteps(entry.name, steps, this.#source, this.#problems);
    const inherited = mergeEnvironments(this.#pipeline.env?.value, job.env?.value);
    const specs: StepSpec[] = [];
    for (const [index, step] of steps.entries()) {
      this.#checkTimeout(step.value, timeoutMs);
      specs.push(this.#buildStep(step, names[index] ?? `step ${index + 1}`, job, inherited, written));
      // The pipeline is refused; going on would only cost memory.
      if (this.#tooLarge) break;
    }
    const services = this.#buildServices(job, inherited);
    const images = [...specs, ...services].map(({ image }) => image);
    // FROM may name any.
    const builds = specs.some(({ build }) => build !== undefined) ? [undefined] : [];
    const registries = describeRegistries(this.#pipeline.registries?.value, [...images, ...builds]);
    const needs = [...new Set((job.needs?.value ?? []).map((need) => need.value))];
    return [
      {
        name: entry.name,
        needs,
        timeoutMs,
        pool: job.pool?.value ?? DEFAULTS.pool,
        steps: specs,
        ...(services.length > 0 && { services }),
        ...(registries.length > 0 && { registries }),
      },
    ];
  }

  #buildServices(job: JobFields, inherited: Readonly<Record<string, string>>): ServiceSpec[] {
    const entries = job.services?.value ?? [];
    checkServices(entries, this.#problems);
    const specs: ServiceSpec[] = [];
    for (const { name, value: service, valueSpan } of entries) {
      if (service === undefined || this.#tooLarge) continue;
      const env = service.env === undefined ? inherited : mergeEnvironments(inherited, service.env.value);
      const pull = service.pull?.value ?? job.pull?.value ?? this.#pipeline.pull?.value;
      this.#checkImage(service.image ?? job.image ?? this.#pipeline.image, env);
      const args = service.args?.value.map(({ value }) => value);
      const ready = buildReady(service);
      const secrets = describeSecrets(service.secrets, { own: service.env?.value ?? [], problems: this.#problems });
      const scripts = [service.run?.value, ready?.run, ...(args ?? []), JSON.stringify(secrets)].join("");
      this.#spend(scripts, env, { span: service.env?.span ?? valueSpan, what: "service" });
      specs.push({
        name,
        image: service.image?.value ?? job.image?.value ?? this.#pipeline.image?.value ?? DEFAULTS.image,
        ...(pull !== undefined && { pull }),
        ...(service.run !== undefined && { run: service.run.value }),
        ...(args !== undefined && { args }),
        env,
        ...(secrets.length > 0 && { secrets }),
        resources: resolveResources([service.resources, job.resources, this.#pipeline.resources]),
        ...(ready !== undefined && { ready }),
        allowFailure: service.allow_failure?.value ?? false,
      });
    }
    return specs;
  }

  #buildStep(
    { value: step, span }: Located<StepFields>,
    name: string,
    job: JobFields,
    inherited: Readonly<Record<string, string>>,
    jobTimeout: Located<number> | undefined,
  ): StepSpec {
    const env = step.env === undefined ? inherited : mergeEnvironments(inherited, step.env.value);
    const network = step.network ?? job.network ?? this.#pipeline.network;
    this.#checkAllowed(network, job);
    this.#checkNested(step, network);
    const cached = step.cache?.value.containers?.value;
    this.#checkBuild(step);
    const image = step.image ?? job.image ?? this.#pipeline.image;
    if (step.build === undefined) this.#checkImage(image, env);
    const build = step.build && describeBuild(step.build, { env, problems: this.#problems });
    const secrets = describeSecrets(step.secrets, { own: step.env?.value ?? [], problems: this.#problems });
    const content = build === undefined ? (step.run?.value ?? "") : JSON.stringify(build);
    this.#spend(content + JSON.stringify(secrets), env, {
      span: step.env?.span ?? span,
      what: "step",
      network: network?.value,
    });
    const pull = step.pull?.value ?? job.pull?.value ?? this.#pipeline.pull?.value;
    const keep = step.keep_on_failure ?? job.keep_on_failure ?? this.#pipeline.keep_on_failure;
    return {
      name,
      ...(build === undefined ? { run: step.run?.value ?? "" } : { build }),
      image: image?.value ?? DEFAULTS.image,
      ...(pull !== undefined && { pull }),
      env,
      ...(secrets.length > 0 && { secrets }),
      timeoutMs: step.timeout?.value ?? jobTimeout?.value ?? DEFAULTS.stepTimeoutMs,
      resources: resolveResources([step.resources, job.resources, this.#pipeline.resources]),
      network: network?.value ?? DEFAULTS.network,
      allowFailure: step.allow_failure?.value ?? false,
      ...(step.nested?.value === true && { nested: true }),
      ...(cached !== undefined && { containerCache: cached }),
      ...(keep !== undefined && keep.value > 0 && build === undefined && { keepOnFailureMs: keep.value }),
    };
  }

  #checkTimeout(step: StepFields, jobTimeoutMs: number): void {
    if (step.timeout === undefined || step.timeout.value <= jobTimeoutMs) return;
    const [own, whole] = [formatDuration(step.timeout.value), formatDuration(jobTimeoutMs)];
    this.#problems.warning(
      step.timeout.span,
      `this step may run for ${own}, but its job ends after ${whole}`,
      `write "timeout: ${own}" or more on the job`,
    );
  }

  /** A path is taken as it is. */
  #checkImage(image: Located<string> | undefined, env: Readonly<Record<string, string>>): void {
    if (image === undefined || image.value.startsWith("./")) return;
    for (const { problem, suggestion } of findVariables(image.value).unknown(env)) {
      this.#problems.error(image.span, problem, suggestion);
    }
  }

  /** No script runs in it, and what its commands run in says the Dockerfile. */
  #checkBuild({ build, image, nested, secrets, keep_on_failure: keep }: StepFields): void {
    if (build === undefined) return;
    const [say, drop] = ["a step that builds", "remove it: the Dockerfile's FROM says what its commands run in"];
    if (image !== undefined) this.#problems.error(image.span, `${say} has no "image" of its own`, drop);
    if (nested?.value === true) this.#problems.error(nested.span, `${say} needs no "nested"`, "remove it");
    if (secrets !== undefined) {
      const help = 'write them below build: "secrets: { ID: { secret: NAME } }", for RUN --mount=type=secret';
      this.#problems.error(secrets.span, `${say} gives its commands no variables`, help);
    }
    if (keep !== undefined && keep.value > 0) {
      this.#problems.error(keep.span, `${say} leaves nothing to keep`, "remove it");
    }
  }

  /** What it may do to a network it may do to its own only. */
  #checkNested({ nested, cache }: StepFields, network: Located<StepNetwork> | undefined): void {
    if (cache !== undefined && nested?.value !== true) {
      const problem = 'only a step with "nested: true" has containers to keep';
      this.#problems.error(cache.span, problem, "remove it: images of steps are kept by the agent");
    }
    if (nested?.value !== true || network?.value !== "host") return;
    this.#problems.error(
      nested.span,
      "a nested step cannot have the host's network: its containers need one of their own",
      'write "network: job" or "network: none"',
    );
  }

  /** In /etc/hosts a name has one meaning. */
  #checkAllowed(network: Located<StepNetwork> | undefined, job: JobFields): void {
    if (typeof network?.value !== "object") return;
    const allowed = new Set(network.value.allow.map(({ host }) => host));
    const service = job.services?.value.find(({ name }) => allowed.has(name.toLowerCase()));
    if (service === undefined) return;
    const message = `the allow list names ${quote(service.name)}, which is a service of this job`;
    this.#problems.error(network.span, message, "services are reached always: remove it, or rename the service");
  }

  /** Counts what a step or service adds to the plan: it is stored and sent, and few lines can multiply into gigabytes. */
  #spend(
    run: string,
    env: Readonly<Record<string, string>>,
    { span, what, network }: { span: Span; what: "step" | "service"; network?: StepNetwork | undefined },
  ): void {
    let variables = 0;
    let envBytes = 0;
    for (const name in env) {
      variables += 1;
      // "NAME=value", a NUL and a pointer, as the kernel counts them.
      envBytes += name.length + Buffer.byteLength(env[name] ?? "") + 10;
    }
    if (variables > LIMITS.envVariables) {
      this.#problems.error(span, `this ${what} has ${variables} variables; at most ${LIMITS.envVariables} are allowed`);
    }
    if (envBytes > LIMITS.envBytes) {
      const message = `the variables of this ${what} have ${formatBytes(envBytes)}; at most ${formatBytes(LIMITS.envBytes)} are allowed`;
      this.#problems.error(span, message, "keep large values in files of the repository");
    }
    const allowed = typeof network === "object" ? network.allow.length : 0;
    this.#bytes += envBytes + Buffer.byteLength(run) + allowed * allowedBytes;
    if (this.#bytes <= LIMITS.pipelineBytes) return;
    this.#tooLarge = true;
    const most = formatBytes(LIMITS.pipelineBytes);
    this.#problems.error(
      span,
      `the scripts and variables of all steps have more than ${most}`,
      "repeat less by aliases",
    );
  }
}
