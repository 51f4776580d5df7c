/** The language: every key of a pipeline, what it may hold, what it means. The parser and the JSON schema come from here. */
import { build } from "./build.ts";
import { cache } from "./cache.ts";
import { dictionary, list } from "./collection.ts";
import { environment } from "./environment.ts";
import { image, pull } from "./image-name.ts";
import { DEFAULTS, LIMITS } from "./limits.ts";
import { formatDuration } from "./quantity.ts";
import { network } from "./network.ts";
import { resources } from "./resources.ts";
import { registries, secrets } from "./secret.ts";
import { services } from "./service.ts";
import { type FieldValues, flag, type JsonSchema, mapping, mismatch, type Shape } from "./shape.ts";
import { quote } from "./suggestion.ts";
import { triggers } from "./trigger.ts";
import { checkIdentifier, duration, identifier, jobReference, keeping, label, NAME_PATTERN, script } from "./value.ts";

/** What pipeline, job and step have in common. The nearest one holds. */
const sharedFields = {
  image: {
    shape: image,
    summary:
      'An image in a registry ("node:24"), "./path" to a root directory or archive in the repository, or "host" (the agent\'s programs, read-only).',
    default: DEFAULTS.image,
  },
  pull: {
    shape: pull,
    summary:
      "When the registry is asked what a tag stands for: always, once per build; only if the agent has no image of that name; or never. Without it: always, and what the agent has where the registry cannot be reached.",
  },
  env: { shape: environment, summary: "Environment variables, merged from pipeline, job and step; the nearest holds." },
  resources: { shape: resources, summary: "Limits of every step below, key by key." },
  network: {
    shape: network,
    summary:
      "job is shared by the job's steps and services and leads to the outside, not to the host or other jobs; with an allow list to nothing else; none is an own network with loopback only; host is the agent's.",
    default: DEFAULTS.network,
  },
  keep_on_failure: {
    shape: keeping,
    summary: `Keeps the root file system of the step that fails for a shell (slipway shell): for a duration, true is ${formatDuration(DEFAULTS.keepMs)}.`,
    default: false,
  },
} as const;

const stepTable = {
  noun: "a step",
  fields: {
    name: { shape: label, summary: "What logs call the step; the first line of the script if left out." },
    run: { shape: script, summary: "A POSIX shell script, run as sh -e in the workspace." },
    build: {
      shape: build,
      summary: "Builds an image of a Dockerfile instead of running a script: the context alone, or a mapping.",
    },
    ...sharedFields,
    secrets: {
      shape: secrets,
      summary:
        "Secrets that the step gets, by name: a list, each as the variable of its name, or variable → name; { secret: NAME, file: true } is the file /run/secrets/KEY.",
    },
    timeout: {
      shape: duration,
      summary: `After this the step is stopped and fails. Default: the job's timeout if one is written, else ${formatDuration(DEFAULTS.stepTimeoutMs)}.`,
    },
    allow_failure: { shape: flag, summary: "Goes on after a failure of this step.", default: false },
    nested: {
      shape: flag,
      summary:
        "Lets the step have containers of its own: buildah, podman, dockerd, bubblewrap, unshare run in it as they are.",
      default: false,
    },
    cache: { shape: cache, summary: "What a nested step keeps between builds." },
  },
  alternatives: { keys: ["run", "build"], missing: 'write "run: command"' },
  synonyms: {
    script: "run",
    scripts: "run",
    command: "run",
    commands: "run",
    cmd: "run",
    sh: "run",
    bash: "run",
    exec: "run",
    environment: "env",
    variables: "env",
    container: "image",
    pull_policy: "pull",
    imagePullPolicy: "pull",
    "timeout-minutes": "timeout",
    "continue-on-error": "allow_failure",
    failure: "allow_failure",
    soft_fail: "allow_failure",
    limits: "resources",
    title: "name",
    label: "name",
    networks: "network",
    privileged: "nested",
    dind: "nested",
    docker: "build",
    docker_build: "build",
    image_build: "build",
    dockerfile: "build",
  },
  hints: {
    uses: "actions are not supported: write the commands as run",
    if: "conditions are not supported yet",
    when: "conditions are not supported yet",
    needs: "steps run in file order; needs belongs to a job",
    depends_on: "steps run in file order; needs belongs to a job",
    from_secret: 'write "secrets: { VARIABLE: name }" on the step',
    push: "write it below build",
    tags: "write it below build",
    args: "write it below build",
    context: "write it below build",
    settings: "plugins are not supported: write the commands as run, or build",
    "working-directory": 'write "cd directory" in the script',
    workdir: 'write "cd directory" in the script',
    shell: "scripts run as sh -e; call another shell from it",
    retry: "retries are not supported yet",
    cpu: "write it below resources",
    memory: "write it below resources",
    pids: "write it below resources",
    disk: "write it below resources",
    io: "write it below resources",
  },
} as const;

const stepMapping = mapping(stepTable);
export type StepFields = FieldValues<typeof stepTable.fields>;

/** A step is a mapping, or its script alone. */
const step: Shape<StepFields> = {
  expected: "a step",
  schema: { anyOf: [script.schema, ...(stepMapping.schema["anyOf"] as readonly JsonSchema[])] },
  read(node, place) {
    if (node.kind === "map") return stepMapping.read(node, place);
    if (node.kind !== "scalar" || node.value === null)
      return mismatch(node, place, 'a script or a mapping with "run" or "build"');
    const value = script.read(node, { ...place, path: "run" });
    return value === undefined ? undefined : { run: { value, span: node.span } };
  },
};

const jobTable = {
  noun: "a job",
  fields: {
    needs: {
      shape: list({
        expected: "the name of a job or a list of them",
        plural: "needs",
        item: jobReference,
        single: true,
        max: LIMITS.jobs,
      }),
      summary: "Jobs that must succeed before this one starts.",
    },
    steps: {
      shape: list({
        expected: "a list of steps",
        plural: "steps",
        item: step,
        owner: (index) => `step ${index + 1}`,
        min: 1,
        max: LIMITS.stepsPerJob,
        suggestion: 'write "steps:" and below it one "- run: command" for each step',
        emptySuggestion: 'write at least one "- run: command"',
      }),
      summary: "Run one after the other in one workspace, each in a fresh container.",
      required: 'write "steps:" and below it one "- run: command" for each step',
    },
    ...sharedFields,
    services: {
      shape: services,
      summary:
        "Name → container that runs beside the steps, in their network: a database, a browser. Steps reach it on localhost and by its name.",
    },
    timeout: {
      shape: duration,
      summary: "After this the job is stopped and fails.",
      default: formatDuration(DEFAULTS.jobTimeoutMs),
    },
    pool: { shape: identifier, summary: "The pool whose agents run this job.", default: DEFAULTS.pool },
  },
  synonyms: {
    depends_on: "needs",
    dependencies: "needs",
    need: "needs",
    after: "needs",
    requires: "needs",
    environment: "env",
    variables: "env",
    container: "image",
    "timeout-minutes": "timeout",
    "runs-on": "pool",
    runs_on: "pool",
    agents: "pool",
    tags: "pool",
    labels: "pool",
    queue: "pool",
    limits: "resources",
    networks: "network",
    sidecars: "services",
    tasks: "steps",
  },
  hints: {
    run: 'write "steps:" and below it "- run: command"',
    script: 'write "steps:" and below it "- run: command"',
    commands: 'write "steps:" and below it "- run: command"',
    name: "a job's name is its key below jobs",
    stage: "stages are not supported: order jobs by needs",
    if: "conditions are not supported yet",
    when: "conditions are not supported yet",
    matrix: "a matrix is not supported yet: write a job for each leg, sharing steps by a YAML anchor",
    strategy: "a matrix is not supported yet: write a job for each leg, sharing steps by a YAML anchor",
    secrets: "write them on the steps that need them: each is told what it gets",
    registries: "write it at the top level",
    artifacts: "artifacts are not supported yet",
    cache: "write it on a nested step; caches of files are not supported yet",
    outputs: "outputs are not supported yet",
    retry: "retries are not supported yet",
    allow_failure: "write it on the steps that may fail",
    nested: "write it on the steps that have containers of their own",
    "continue-on-error": "write allow_failure on the steps that may fail",
    cpu: "write it below resources",
    memory: "write it below resources",
    pids: "write it below resources",
    disk: "write it below resources",
    io: "write it below resources",
  },
} as const;

const job = mapping(jobTable);
export type JobFields = FieldValues<typeof jobTable.fields>;

const pipelineTable = {
  noun: "a pipeline",
  extensible: true,
  fields: {
    name: { shape: label, summary: "What lists call the pipeline." },
    on: { shape: triggers, summary: "What starts the pipeline: every push, tag and pull request if left out." },
    jobs: {
      shape: dictionary({
        expected: "a mapping from names to jobs",
        plural: "jobs",
        value: job,
        namePattern: NAME_PATTERN,
        checkName(name, span, place) {
          const fault = checkIdentifier(name);
          if (fault === undefined) return true;
          place.problems.error(span, `the name ${quote(name)} cannot be used: ${fault.problem}`, fault.suggestion);
          return false;
        },
        owner: (name) => `job ${quote(name)}`,
        min: 1,
        max: LIMITS.jobs,
        emptySuggestion: 'write below it a name, and below that "steps:"',
      }),
      summary: "Name → job. Jobs run side by side unless one needs another.",
      required: 'write "jobs:", below it a name, and below that "steps:"',
    },
    ...sharedFields,
    registries: {
      shape: registries,
      summary:
        "Host → username and password (a secret) with which images of steps and services are pulled, and those that steps build pulled and pushed.",
    },
    timeout: { shape: duration, summary: "The timeout of every job that writes none." },
  },
  synonyms: {
    stages: "jobs",
    workflows: "jobs",
    pipeline: "jobs",
    environment: "env",
    variables: "env",
    when: "on",
    trigger: "on",
    triggers: "on",
    events: "on",
    registry: "registries",
    credentials: "registries",
    image_pull_secrets: "registries",
    docker_auth_config: "registries",
  },
  hints: {
    steps: "steps belong to a job: jobs: { build: { steps: […] } }",
    branches: 'write it below "on"',
    push: 'write it below "on"',
    tag: 'write it below "on"',
    pull_request: 'write it below "on"',
    version: "the language has no versions: remove it",
    defaults: "write image, env, timeout and resources at the top level",
    include: "includes are not supported yet",
    secrets: "write them on the steps that need them: each is told what it gets",
    concurrency: "concurrency groups are not supported yet",
    permissions: "remove it: steps are given no credentials",
    pool: "write it on the jobs",
    needs: "write it on the jobs",
  },
} as const;

export const pipelineShape = mapping(pipelineTable);
export type PipelineFields = FieldValues<typeof pipelineTable.fields>;
