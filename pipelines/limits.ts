/** The defaults and limits of the language; docs/pipeline.md lists them. */
import type { Resources, StepNetwork } from "./pipeline.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;
const minuteMs = 60_000;
const hourMs = 60 * minuteMs;

/** What holds where a pipeline says nothing. */
export const DEFAULTS = {
  file: ".slipway.yml",
  image: "host",
  network: "job",
  pool: "default",
  buildContext: ".",
  dockerfile: "Dockerfile",
  /** Of a step whose job and pipeline write no timeout either. */
  stepTimeoutMs: hourMs,
  jobTimeoutMs: 2 * hourMs,
  /** Of `keep_on_failure: true`. */
  keepMs: hourMs,
  /** Of a service that says when it is ready. */
  readyTimeoutMs: minuteMs,
  resources: { cpu: 2, memoryBytes: 4 * GiB, pids: 2048, diskBytes: 20 * GiB, logBytes: GiB },
} as const satisfies {
  file: string;
  image: string;
  network: StepNetwork;
  pool: string;
  buildContext: string;
  dockerfile: string;
  stepTimeoutMs: number;
  jobTimeoutMs: number;
  keepMs: number;
  readyTimeoutMs: number;
  resources: Resources;
};

/** What a pipeline may not exceed. Each is an error that names the limit and what was found. */
export const LIMITS = {
  /** Of the file; a larger one is refused unread. */
  fileBytes: MiB,
  /** Lexical tokens of YAML; bounds the time a file of 1 MiB can cost. */
  yamlTokens: 200_000,
  /** Collections within collections; bounds the YAML parser's recursion. */
  nesting: 50,
  /** Values after every alias and merge key is expanded. */
  expandedValues: 250_000,
  /** Scripts and environments of all steps together, after inheritance and aliases. */
  pipelineBytes: 32 * MiB,
  jobs: 500,
  stepsPerJob: 100,
  servicesPerJob: 20,
  serviceArguments: 100,
  /** That one service must listen on to be ready. */
  readyPorts: 20,
  /** Of one step's allow list. */
  allowedDestinations: 100,
  /** Of one step or service. */
  stepSecrets: 50,
  /** Of one secret: more is no secret but data. */
  secretBytes: 512 * KiB,
  /** Shorter values would turn ordinary words of a log into asterisks. */
  secretMinCharacters: 6,
  /** With credentials. */
  registries: 20,
  /** Of one build. */
  buildArguments: 200,
  buildLabels: 100,
  buildContexts: 100,
  buildTags: 20,
  buildSecrets: 50,
  buildPlatforms: 10,
  /** Of a path in the repository: PATH_MAX with its NUL. */
  pathLength: 4095,
  /** A script is one argument of `sh -e -c`; the kernel ends an argument at 128 KiB (MAX_ARG_STRLEN, execve(2)). */
  runBytes: 100 * KiB,
  /** A variable is one string of the environment, under the same limit of the kernel. */
  envValueBytes: 100 * KiB,
  /** Of one step, merged. */
  envBytes: 256 * KiB,
  envVariables: 1000,
  nameLength: 100,
  imageLength: 1024,
  patterns: 100,
  patternLength: 255,
  timeoutMinMs: 1000,
  timeoutMaxMs: 7 * 24 * hourMs,
  keepMinMs: minuteMs,
  keepMaxMs: 24 * hourMs,
  cpuMin: 0.01,
  cpuMax: 256,
  memoryMinBytes: 4 * MiB,
  diskMinBytes: MiB,
  logMinBytes: KiB,
  /** Of memory, disk and log. */
  sizeMaxBytes: 16 * TiB,
  rateMinBytes: 64 * KiB,
  rateMaxBytes: TiB,
  operationsMax: 1_000_000_000,
  ioWeightMax: 1000,
  pidsMin: 1,
  /** The kernel's own limit, PID_MAX_LIMIT. */
  pidsMax: 4_194_304,
  diagnostics: 50,
} as const;
