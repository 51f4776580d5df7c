/** What a parsed Dockerfile is: instructions as plain data, variables not yet replaced. */
import type { Span } from "../pipelines/index.ts";
import type { HereDocument } from "./lines.ts";
import type { EscapeCharacter } from "./word.ts";

/** Text of the Dockerfile and where it stands in the file. */
export interface Word {
  readonly text: string;
  readonly span: Span;
}

/** `RUN`, `CMD` and `ENTRYPOINT` either way: a JSON array is executed as it is, anything else by the shell. */
export type CommandForm =
  | { readonly form: "exec"; readonly args: readonly string[] }
  | { readonly form: "shell"; readonly text: string };

interface Common {
  /** As written, joined to one line. */
  readonly text: string;
  /** The whole instruction in the file. */
  readonly span: Span;
  /** The instruction's name in the file, for messages about all of it. */
  readonly nameSpan: Span;
}

export interface FromInstruction extends Common {
  readonly kind: "from";
  readonly base: Word;
  /** In lower case. */
  readonly stageName?: string;
  readonly platform?: Word;
}

export interface RunInstruction extends Common {
  readonly kind: "run";
  readonly command: CommandForm;
  readonly hereDocuments: readonly HereDocument[];
  /** Values of `--mount`. */
  readonly mounts: readonly Word[];
  readonly network?: Word;
  readonly security?: Word;
}

/** A file written in the Dockerfile: `COPY <<name …`. */
export interface InlineFile {
  readonly name: string;
  readonly content: string;
  /** Whether variables in the content are replaced. */
  readonly expand: boolean;
}

export interface CopyInstruction extends Common {
  readonly kind: "copy" | "add";
  readonly sources: readonly Word[];
  readonly files: readonly InlineFile[];
  readonly destination: Word;
  readonly from?: Word;
  readonly chown?: Word;
  readonly chmod?: Word;
  readonly checksum?: Word;
  readonly excludes: readonly Word[];
  readonly link: boolean;
  readonly parents: boolean;
  readonly keepGitDir?: boolean;
  readonly unpack?: boolean;
}

/** `ENV name=value`; `legacy` is the form `ENV name value`. */
export interface Assignment {
  readonly name: Word;
  readonly value: Word;
  readonly legacy: boolean;
}

export interface AssignmentsInstruction extends Common {
  readonly kind: "env" | "label";
  readonly assignments: readonly Assignment[];
}

export interface ArgInstruction extends Common {
  readonly kind: "arg";
  readonly args: readonly { readonly name: Word; readonly value?: Word }[];
}

export interface ValueInstruction extends Common {
  readonly kind: "workdir" | "user" | "stopsignal" | "maintainer";
  readonly value: Word;
}

export interface ListInstruction extends Common {
  readonly kind: "expose" | "volume";
  readonly values: readonly Word[];
}

export interface CommandInstruction extends Common {
  readonly kind: "cmd" | "entrypoint";
  readonly command: CommandForm;
}

/** Docker's extension of the image configuration; durations in nanoseconds. */
export interface Healthcheck {
  readonly Test: readonly string[];
  readonly Interval?: number;
  readonly Timeout?: number;
  readonly StartPeriod?: number;
  readonly StartInterval?: number;
  readonly Retries?: number;
}

export interface HealthcheckInstruction extends Common {
  readonly kind: "healthcheck";
  readonly healthcheck: Healthcheck;
}

export interface ShellInstruction extends Common {
  readonly kind: "shell";
  readonly shell: readonly string[];
}

export interface OnbuildInstruction extends Common {
  readonly kind: "onbuild";
  /** What the image's configuration keeps: the instruction with its here-documents. */
  readonly trigger: string;
}

/** What stands below a FROM. */
export type StageInstruction =
  | RunInstruction
  | CopyInstruction
  | AssignmentsInstruction
  | ArgInstruction
  | ValueInstruction
  | ListInstruction
  | CommandInstruction
  | HealthcheckInstruction
  | ShellInstruction
  | OnbuildInstruction;

export type Instruction = FromInstruction | StageInstruction;

export interface Stage {
  /** Its place in the file, from 0. */
  readonly index: number;
  readonly from: FromInstruction;
  readonly instructions: readonly StageInstruction[];
}

export interface Dockerfile {
  readonly escape: EscapeCharacter;
  /** ARGs above the first FROM. */
  readonly globalArgs: readonly ArgInstruction[];
  /** At least one. */
  readonly stages: readonly Stage[];
}
