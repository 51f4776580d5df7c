/** What a parsed pipeline is: plain data, every default filled in, every environment merged. */

/** When the pipeline runs. Absent events do not trigger it. */
export interface Triggers {
  readonly push?: RefFilter;
  readonly tag?: RefFilter;
  readonly pull_request?: RefFilter;
}

/** Glob patterns on branch or tag names; an empty list means every name. A pattern that begins with `!` excludes. */
export interface RefFilter {
  readonly patterns: readonly string[];
}

/** What one step may use. */
export interface Resources {
  /** CPU cores, for example 0.5. */
  readonly cpu: number;
  readonly memoryBytes: number;
  /** Processes and threads at once. */
  readonly pids: number;
  /** What it may add to its root file system and the workspace together. */
  readonly diskBytes: number;
  /** What it may print. */
  readonly logBytes: number;
  readonly io?: IoLimits;
}

/** How fast a step may use the disk of the agent's data directory; a key that is absent limits nothing. */
export interface IoLimits {
  /** 1 to 1000, against 100 of a step that asks for nothing. */
  readonly weight?: number;
  readonly readBytesPerSecond?: number;
  readonly writeBytesPerSecond?: number;
  readonly readOperationsPerSecond?: number;
  readonly writeOperationsPerSecond?: number;
}

/**
 * `job` is shared by the steps and services of a job and leads to the outside; with an allow list it leads nowhere else while
 * the step runs. `none` is an own network namespace with loopback only; `host` is the host's.
 */
export type StepNetwork = "none" | "job" | "host" | { readonly allow: readonly AllowedDestination[] };

/** A name, an IPv4 or an IPv6 address (without brackets), and ports by TCP and UDP. */
export interface AllowedDestination {
  readonly host: string;
  readonly firstPort: number;
  readonly lastPort: number;
}

/** When a registry is asked what a tag stands for. */
export type PullPolicy = "always" | "missing" | "never";

/** A secret that a step names, by the name under which it was set: a variable, or a file of this name in /run/secrets. */
export type StepSecret = { readonly secret: string } & ({ readonly env: string } | { readonly file: string });

/** With what the job asks a registry, `docker.io`. */
export interface RegistryLogin {
  readonly registry: string;
  readonly username: string | { readonly secret: string };
  readonly password: { readonly secret: string };
}

/** What a secret of a build is: a secret that was set, the value of a variable of the step, or a file, relative to the workspace. */
export type BuildSecret = { readonly secret: string } | { readonly env: string } | { readonly file: string };

/**
 * What a name of a Dockerfile means: a directory, relative to the workspace, an image, or files at a URL. In image and URL `${NAME}`
 * stands for a variable of the step.
 */
export type BuildContextSpec = { readonly directory: string } | { readonly image: string } | { readonly url: string };

/**
 * An image that a step builds. Paths are relative to the workspace and do not lead out of it as they are written. In `target`,
 * `args`, `tags`, `push` and `labels`, `${NAME}` stands for a variable of the step (`expandVariables`).
 */
export interface ImageBuildSpec {
  readonly context: string;
  readonly dockerfile: string;
  /** By name; absent where there are none. */
  readonly contexts?: Readonly<Record<string, BuildContextSpec>>;
  /** Absent: the last stage. */
  readonly target?: string;
  readonly args: Readonly<Record<string, string>>;
  /** By id. */
  readonly secrets: Readonly<Record<string, BuildSecret>>;
  readonly tags: readonly string[];
  /** Absent: to nowhere. `true`: each tag to the registry it names. Else what is put in front of each tag. */
  readonly push?: true | string;
  /** `linux/arm64`; none: the agent's own. */
  readonly platforms: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  /** Whether layers of earlier builds are used. */
  readonly cache: boolean;
  /** Where the image is written; an archive if it ends with `.tar`, else an OCI layout. */
  readonly output?: string;
}

/** A step has either `run` or `build`. */
export interface StepSpec {
  readonly name: string;
  /** A POSIX shell script, run as `sh -e`. */
  readonly run?: string;
  readonly build?: ImageBuildSpec;
  /** What `run` runs in: `host`, a path that begins with `./`, relative to the workspace, or the name of an image in a registry. */
  readonly image: string;
  /** Absent where the pipeline says nothing: as "always", but what the agent has will do where the registry cannot be reached. */
  readonly pull?: PullPolicy;
  /** The whole environment the pipeline gives: pipeline, job and step merged. */
  readonly env: Readonly<Record<string, string>>;
  /** Absent where there are none. */
  readonly secrets?: readonly StepSecret[];
  readonly timeoutMs: number;
  readonly resources: Resources;
  readonly network: StepNetwork;
  readonly allowFailure: boolean;
  /** It may have containers of its own. */
  readonly nested?: true;
  /** The name under which its builders' images and layers are kept between builds. */
  readonly containerCache?: string;
  /** For so long its root file system is kept for a shell if it fails and ends the job; absent: not at all. */
  readonly keepOnFailureMs?: number;
}

/** When a service is ready: all of what is there must hold. */
export interface ReadySpec {
  /** TCP ports on which it listens. */
  readonly ports: readonly number[];
  /** A POSIX shell script that succeeds. */
  readonly run?: string;
  readonly timeoutMs: number;
}

/** A container beside the steps of a job, in their network. */
export interface ServiceSpec {
  /** A host name, too: it leads to localhost. */
  readonly name: string;
  /** As in a step. */
  readonly image: string;
  readonly pull?: PullPolicy;
  /** A POSIX shell script, run as `sh -e`; without it the image's own program is run. */
  readonly run?: string;
  /** Arguments of the image's own program, in place of the image's. */
  readonly args?: readonly string[];
  /** The whole environment the pipeline gives: pipeline, job and service merged. */
  readonly env: Readonly<Record<string, string>>;
  /** Absent where there are none. */
  readonly secrets?: readonly StepSecret[];
  readonly resources: Resources;
  /** Absent: the steps begin as soon as it runs. */
  readonly ready?: ReadySpec;
  /** The job goes on without it. */
  readonly allowFailure: boolean;
}

export interface JobSpec {
  readonly name: string;
  readonly needs: readonly string[];
  readonly timeoutMs: number;
  readonly pool: string;
  readonly steps: readonly StepSpec[];
  /** In file order; absent where there are none. */
  readonly services?: readonly ServiceSpec[];
  /** Of those registries that its images may be in; absent where there are none. */
  readonly registries?: readonly RegistryLogin[];
}

export interface Pipeline {
  /** What the file calls itself; lists show it where a repository has one. */
  readonly name?: string;
  readonly on: Triggers;
  /** In file order. */
  readonly jobs: readonly JobSpec[];
}

export type EventKind = "push" | "tag" | "pull_request" | "manual";

/** What happened in the repository. `ref` is a full ref name, `refs/heads/main`. */
export interface PipelineEvent {
  readonly kind: EventKind;
  readonly ref: string;
  /** The commit to build, 40 (or 64) hexadecimal digits. */
  readonly commit: string;
  /** A person has named the commit: nobody has looked whether it is on the ref. */
  readonly byCommit?: true;
  /** The branch pushed to, or a pull request's base branch. */
  readonly branch?: string;
  readonly tag?: string;
  readonly pullRequest?: { readonly number: number; readonly fromFork: boolean };
  /** The head commit's message; `[skip ci]` in it keeps a push or a pull request from building. */
  readonly message?: string;
}

/** `failure` = the user's step failed; `error` = our machinery failed. */
export type Status = "queued" | "running" | "success" | "failure" | "error" | "canceled" | "skipped";

export interface Diagnostic {
  readonly severity: "error" | "warning";
  readonly message: string;
  readonly file: string;
  /** Counted from 1. */
  readonly line: number;
  /** Counted from 1, in UTF-16 code units. */
  readonly column: number;
  /** Exclusive, on the same line. */
  readonly endColumn: number;
  /** The offending line, at most 200 characters of it. It holds what the file holds: escape it before showing it. */
  readonly snippet: string;
  /** The column of the snippet's first character, where a long line was cut in front. @default 1 */
  readonly snippetColumn?: number;
  /** How to mend it: `did you mean "steps"?` */
  readonly suggestion?: string;
}
