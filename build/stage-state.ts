/**
 * What the instructions of a stage mean, one after the other: variables replaced, the configuration changed, and what is
 * to be done to the files.
 *
 * Pure: the plan of a stage can be had without its base image's files and without privileges.
 */
import { quote, type Span } from "../pipelines/index.ts";
import type { Configuration, ContainerConfiguration, HistoryEntry, Platform } from "./configuration.ts";
import type {
  ArgInstruction,
  CommandForm,
  CopyInstruction,
  RunInstruction,
  StageInstruction,
  Word,
} from "./instruction.ts";
import { parseHereDocument } from "./lines.ts";
import { cleanPath } from "./pattern.ts";
import { chomped } from "./parse.ts";
import { parsePorts, PortError } from "./ports.ts";
import { MountError, parseMount, type RunMount } from "./run-mount.ts";
import { type EscapeCharacter, type ExpandedWord, expandWord, type WordOptions, WordError } from "./word.ts";

/** A command to be run. */
export interface RunOperation {
  readonly kind: "run";
  readonly args: readonly string[];
  /** A program that the Dockerfile holds: what a here-document that begins with `#!` is. */
  readonly script?: { readonly path: string; readonly content: string };
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly user: string;
  readonly mounts: readonly RunMount[];
  readonly network: "default" | "none" | "host";
}

/** Files to be copied. */
export interface CopyOperation {
  readonly kind: "copy";
  readonly isAdd: boolean;
  readonly sources: readonly string[];
  readonly files: readonly { readonly name: string; readonly content: string }[];
  /** Absolute; a slash at the end says that it is a directory. */
  readonly destination: string;
  /** A stage or an image; the context if absent. */
  readonly from?: string;
  readonly chown?: string;
  readonly chmod?: string;
  readonly checksum?: string;
  readonly excludes: readonly string[];
  readonly link: boolean;
  readonly parents: boolean;
  readonly unpack: boolean | undefined;
  readonly keepGitDir: boolean;
}

/** A directory to be made if it is missing. */
export interface DirectoryOperation {
  readonly kind: "directory";
  readonly path: string;
  /** Its owner, as USER names it; root if it is empty. */
  readonly user: string;
}

export type Operation = RunOperation | CopyOperation | DirectoryOperation;

/** An instruction that cannot be carried out as it is written. */
export class InstructionError extends Error {
  override readonly name = "InstructionError";
  readonly span: Span;
  readonly suggestion: string | undefined;

  constructor(span: Span, message: string, options: { readonly suggestion?: string; readonly cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.span = span;
    this.suggestion = options.suggestion;
  }
}

export interface StageStateOptions {
  readonly escape: EscapeCharacter;
  /** ARGs above the first FROM and those that are always there, as they are for this build. */
  readonly globalArgs: ReadonlyMap<string, string>;
  readonly buildArgs: ReadonlyMap<string, string>;
  /** Told about what is no error but probably no intention. */
  readonly warn: (span: Span, message: string) => void;
  /** Told how long the text is that a variable's value has come to stand in. @throws {Error} If it is too much for one build. */
  readonly spend: (span: Span, characters: number) => void;
}

/** Docker's PATH where an image has none. */
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/** Given to every RUN where the build has them, without an ARG, and no reason to run anything again. */
export const proxyArgs: readonly string[] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"].flatMap(
  (name) => [name.toUpperCase(), name],
);

/** All environments together; execve(2) takes 2 MiB, and 128 KiB for each. */
const MAX_ENVIRONMENT = 1 << 20;

const MAX_KEYS = { Labels: 10_000, Volumes: 10_000, ExposedPorts: 200_000 } as const;
const keyNames = { Labels: "labels", Volumes: "volumes", ExposedPorts: "ports" } as const;

export class StageState {
  readonly platform: Platform;
  readonly config: ContainerConfiguration;
  author: string | undefined;
  readonly history: HistoryEntry[];
  readonly #options: StageStateOptions;
  /** Variables that words see and commands get: those of the image, and ARGs. */
  readonly #env = new Map<string, string>();
  /** ARGs in the order of their declaration, for the history. */
  readonly #args = new Map<string, string | undefined>();
  /** ONBUILD triggers that the image leaves to whoever builds on it. */
  #triggers: readonly string[] = [];
  #hasCmd = false;
  /** Mappings of the configuration that are not the base's. */
  readonly #own = new Map<string, { readonly values: Record<string, unknown>; size: number }>();

  private constructor(from: Omit<Configuration, "rootfs" | "created">, options: StageStateOptions) {
    const { os, architecture, variant } = from;
    this.platform = { os, architecture, ...(variant !== undefined && { variant }) };
    this.config = { ...from.config };
    this.author = from.author;
    this.history = [...from.history];
    this.#options = options;
  }

  /** The state that an image leaves; its triggers are to be applied next. */
  static onImage(image: Omit<Configuration, "rootfs" | "created">, options: StageStateOptions): StageState {
    const state = new StageState(image, options);
    state.#triggers = image.config.OnBuild ?? [];
    delete state.config.OnBuild;
    const env = image.config.Env ?? [];
    state.config.Env = env.some((entry) => entry.startsWith("PATH=")) ? env : [...env, defaultPath];
    for (const entry of state.config.Env) {
      const equals = entry.indexOf("=");
      if (equals > 0) state.#env.set(entry.slice(0, equals), entry.slice(equals + 1));
    }
    return state;
  }

  /** The state that another stage leaves, its ARGs included. */
  static onStage(base: StageState, options: StageStateOptions): StageState {
    const { platform, config, author, history } = base;
    const state = new StageState({ ...platform, config, author: author ?? "", history }, options);
    state.author = author;
    delete state.config.OnBuild;
    for (const [name, value] of base.#env) state.#env.set(name, value);
    for (const [name, value] of base.#args) state.#args.set(name, value);
    return state;
  }

  /** `FROM scratch` */
  static empty(platform: Platform, options: StageStateOptions): StageState {
    return StageState.onImage({ ...platform, config: { WorkingDir: "/" }, history: [] }, options);
  }

  /** ONBUILD triggers for a stage that begins here. */
  get triggers(): readonly string[] {
    return [...this.#triggers, ...(this.config.OnBuild ?? [])];
  }

  /**
   * Applies an instruction.
   *
   * @returns What is to be done to the files, if anything; `record` it when it is known whether that made a layer.
   * @throws {InstructionError}
   */
  apply(instruction: StageInstruction): { readonly operation?: Operation; readonly createdBy: string } {
    switch (instruction.kind) {
      case "run":
        return this.#run(instruction);
      case "copy":
      case "add":
        return this.#copy(instruction);
      case "workdir":
        return this.#workdir(instruction.value);
      case "arg":
        return this.#arg(instruction);
      case "env": {
        const pairs = instruction.assignments.map(({ name, value }) => [this.#word(name), this.#word(value)] as const);
        for (const [name, value] of pairs) this.#setEnv(name, value, instruction.span);
        return { createdBy: `ENV ${pairs.map(([name, value]) => `${name}=${value}`).join(" ")}` };
      }
      case "label": {
        const pairs = instruction.assignments.map(({ name, value }) => [this.#word(name), this.#word(value)] as const);
        this.#addKeys("Labels", pairs, instruction.span);
        return { createdBy: `LABEL ${pairs.map(([name, value]) => `${name}=${value}`).join(" ")}` };
      }
      case "user":
        this.config.User = this.#word(instruction.value);
        return { createdBy: `USER ${this.config.User}` };
      case "stopsignal":
        this.config.StopSignal = this.#signal(instruction.value);
        return { createdBy: `STOPSIGNAL ${this.config.StopSignal}` };
      case "maintainer":
        this.author = instruction.value.text;
        return { createdBy: `MAINTAINER ${this.author}` };
      case "expose":
        return this.#expose(instruction.values);
      case "volume": {
        const volumes = instruction.values.map((value) => this.#word(value));
        const empty = instruction.values[volumes.indexOf("")];
        if (empty !== undefined) throw new InstructionError(empty.span, "a VOLUME without a name");
        this.#addKeys(
          "Volumes",
          volumes.map((name) => [name, {}] as const),
          instruction.span,
        );
        return { createdBy: `VOLUME [${volumes.join(" ")}]` };
      }
      case "cmd":
        this.config.Cmd = this.#withShell(instruction.command);
        this.#hasCmd = true;
        return { createdBy: `CMD ${JSON.stringify(this.config.Cmd)}` };
      case "entrypoint":
        this.config.Entrypoint = this.#withShell(instruction.command);
        // What the base image runs is no argument of another program.
        if (!this.#hasCmd) delete this.config.Cmd;
        return { createdBy: `ENTRYPOINT ${JSON.stringify(this.config.Entrypoint)}` };
      case "healthcheck":
        this.config.Healthcheck = instruction.healthcheck;
        return { createdBy: `HEALTHCHECK ${JSON.stringify(instruction.healthcheck)}` };
      case "shell":
        this.config.Shell = instruction.shell;
        return { createdBy: `SHELL ${JSON.stringify(instruction.shell)}` };
      case "onbuild":
        this.config.OnBuild = [...(this.config.OnBuild ?? []), instruction.trigger];
        return { createdBy: `ONBUILD ${instruction.trigger}` };
    }
  }

  /** Adds to the history. @param created As RFC 3339 has it. */
  record(createdBy: string, options: { readonly hasLayer: boolean; readonly created: string | undefined }): void {
    this.history.push({
      ...(options.created !== undefined && { created: options.created }),
      created_by: createdBy,
      comment: "slipway",
      ...(!options.hasLayer && { empty_layer: true }),
    });
  }

  /** Replaces the variables of a word. */
  #word(word: Word): string {
    return this.#expand(word, { escape: this.#options.escape }).text;
  }

  #expand({ text, span }: Word, options: WordOptions): ExpandedWord {
    try {
      const expanded = expandWord(text, (name) => this.#env.get(name), options);
      this.#options.spend(span, expanded.text.length);
      for (const name of expanded.unset) {
        if (!/^[\p{L}_]/u.test(name)) continue;
        this.#options.warn(span, `the variable ${quote(name)} is not set here`);
      }
      if (expanded.text.includes("\0")) throw new InstructionError(span, "it contains a NUL");
      return expanded;
    } catch (error) {
      if (error instanceof WordError) throw new InstructionError(span, error.message, { cause: error });
      throw error;
    }
  }

  #run(instruction: RunInstruction): { operation: RunOperation; createdBy: string } {
    const { args, script } = this.#command(instruction);
    const mounts = instruction.mounts.map((word) => this.#mount(word));
    const env = Object.fromEntries([...this.#proxyEnv(), ...this.#env]);
    const declared = [...this.#args].map(([name, value]) => `${name}=${this.#env.get(name) ?? value ?? ""}`);
    const shown = [...(declared.length === 0 ? [] : [`|${declared.length}`, ...declared]), ...args];
    const operation: RunOperation = {
      kind: "run",
      args,
      ...(script !== undefined && { script }),
      env,
      cwd: this.config.WorkingDir || "/",
      user: this.config.User ?? "",
      mounts,
      network: this.#network(instruction),
    };
    return { operation, createdBy: `RUN ${shown.join(" ")}` };
  }

  /** In both spellings, whichever was given: curl reads one, wget the other. */
  #proxyEnv(): [string, string][] {
    return proxyArgs.flatMap((name) => {
      const { buildArgs } = this.#options;
      const value = buildArgs.get(name) ?? buildArgs.get(name.toLowerCase()) ?? buildArgs.get(name.toUpperCase());
      return value === undefined ? [] : [[name, value] as [string, string]];
    });
  }

  /** What a RUN executes: here-documents become the command itself, a program, or the shell's own. */
  #command({ command, hereDocuments }: RunInstruction): Pick<RunOperation, "args" | "script"> {
    const [first] = hereDocuments;
    if (command.form === "exec" || first === undefined) return { args: this.#withShell(command) };
    if (parseHereDocument(command.text) === undefined) {
      const documents = hereDocuments.map(({ name, content }) => `\n${content}${name}`);
      return { args: this.#withShell({ form: "shell", text: command.text + documents.join("") }) };
    }
    const content = chomped(first);
    if (!content.startsWith("#!")) return { args: this.#withShell({ form: "shell", text: content }) };
    const path = `/dev/pipes/${first.name.replaceAll("/", "_")}`;
    return { args: this.#withShell({ form: "shell", text: path }), script: { path, content } };
  }

  #withShell(command: CommandForm): readonly string[] {
    if (command.form === "exec") return command.args;
    return [...(this.config.Shell ?? ["/bin/sh", "-c"]), command.text];
  }

  #mount(word: Word): RunMount {
    try {
      return parseMount(word.text, (value) => this.#word({ text: value, span: word.span }));
    } catch (error) {
      if (error instanceof MountError) throw new InstructionError(word.span, error.message, { cause: error });
      throw error;
    }
  }

  #network({ network, security }: RunInstruction): RunOperation["network"] {
    if (security !== undefined && security.text !== "sandbox") {
      const problem = security.text === "insecure" ? "is not allowed" : "is no security mode";
      throw new InstructionError(security.span, `--security=${security.text} ${problem}`, {
        suggestion: "commands run in a container without privileges on the host: write sandbox, or nothing",
      });
    }
    const name = network?.text ?? "default";
    if (name === "default" || name === "none" || name === "host") return name;
    throw new InstructionError((network as Word).span, `there is no network ${quote(name)}`, {
      suggestion: "write default, none or host",
    });
  }

  #copy(instruction: CopyInstruction): { operation: CopyOperation; createdBy: string } {
    const sources = instruction.sources.map((source) => this.#word(source));
    const destination = this.#word(instruction.destination);
    const literal = { literalQuotes: true };
    const files = instruction.files.map(({ name, content, expand }) => ({
      name,
      content: expand ? this.#expand({ text: content, span: instruction.span }, literal).text : content,
    }));
    const { chown, chmod, checksum, from } = instruction;
    const optional = <Name extends string>(name: Name, word: Word | undefined) =>
      (word === undefined ? {} : { [name]: this.#word(word) }) as Partial<Record<Name, string>>;
    if (from !== undefined && from.text.includes("$") && this.#word(from) !== from.text) {
      throw new InstructionError(from.span, "--from cannot have variables", {
        suggestion: "name a stage there whose FROM has them",
      });
    }
    const operation: CopyOperation = {
      kind: "copy",
      isAdd: instruction.kind === "add",
      sources,
      files,
      destination: this.#absolute(destination),
      ...(from !== undefined && { from: from.text }),
      ...optional("chown", chown),
      ...optional("chmod", chmod),
      ...optional("checksum", checksum),
      excludes: instruction.excludes.map(({ text }) => text),
      link: instruction.link,
      parents: instruction.parents,
      unpack: instruction.unpack,
      keepGitDir: instruction.keepGitDir ?? false,
    };
    const flags = [
      ...(operation.parents ? ["--parents"] : []),
      ...(operation.chown === undefined ? [] : [`--chown=${operation.chown}`]),
      ...(operation.chmod === undefined ? [] : [`--chmod=${operation.chmod}`]),
    ];
    const names = [...sources, ...files.map(({ name }) => `<<${name}`), destination];
    return { operation, createdBy: [instruction.kind.toUpperCase(), ...flags, ...names].join(" ") };
  }

  /** A path seen from the working directory; a slash at its end, or `.`, says that it is a directory. */
  #absolute(path: string): string {
    const joined = path.startsWith("/") ? path : `${this.config.WorkingDir || "/"}/${path}`;
    const cleaned = cleanPath(joined);
    const isDirectory = path === "" || /(?:^|\/)\.{0,2}$/.test(path);
    return isDirectory && cleaned !== "/" ? `${cleaned}/` : cleaned;
  }

  #workdir(value: Word): { operation?: DirectoryOperation; createdBy: string } {
    const path = this.#word(value);
    if (path === "") throw new InstructionError(value.span, "a WORKDIR without a name");
    const cleaned = cleanPath(path.startsWith("/") ? path : `${this.config.WorkingDir || "/"}/${path}`);
    this.config.WorkingDir = cleaned;
    const createdBy = `WORKDIR ${cleaned}`;
    if (cleaned === "/") return { createdBy };
    return { operation: { kind: "directory", path: cleaned, user: this.config.User ?? "" }, createdBy };
  }

  #arg({ args, span }: ArgInstruction): { createdBy: string } {
    const shown = args.map(({ name, value }) => {
      const given = this.#options.buildArgs.get(name.text);
      let resolved = given;
      if (given === undefined && value !== undefined) resolved = this.#word(value);
      if (given === undefined && value === undefined) resolved = this.#options.globalArgs.get(name.text);
      if (resolved !== undefined) this.#env.set(name.text, resolved);
      this.#args.set(name.text, resolved);
      this.#checkEnvironment(span);
      return resolved === undefined ? name.text : `${name.text}=${resolved}`;
    });
    return { createdBy: `ARG ${shown.join(" ")}` };
  }

  /** Adds to a mapping of the configuration, of which the base keeps its own. */
  #addKeys<Key extends "Labels" | "Volumes" | "ExposedPorts">(
    key: Key,
    entries: readonly (readonly [string, NonNullable<ContainerConfiguration[Key]>[string]])[],
    span: Span,
  ): void {
    let known = this.#own.get(key);
    if (known === undefined) {
      const theirs = Object.entries(this.config[key] ?? {});
      known = { values: Object.fromEntries(theirs), size: theirs.length };
      this.#own.set(key, known);
      Object.assign(this.config, { [key]: known.values });
    }
    for (const [name, value] of entries) {
      if (!Object.hasOwn(known.values, name)) known.size++;
      // Not by assignment: a label may be called __proto__.
      Object.defineProperty(known.values, name, { value, enumerable: true, writable: true, configurable: true });
    }
    if (known.size > MAX_KEYS[key]) {
      throw new InstructionError(span, `an image has at most ${MAX_KEYS[key]} ${keyNames[key]}`);
    }
  }

  #setEnv(name: string, value: string, span: Span): void {
    if (name === "" || name.includes("=")) throw new InstructionError(span, `${quote(name)} is no name of a variable`);
    this.#env.set(name, value);
    const entry = `${name}=${value}`;
    const env = this.config.Env ?? [];
    const at = env.findIndex((each) => each.startsWith(`${name}=`));
    this.config.Env = at === -1 ? [...env, entry] : env.with(at, entry);
    this.#checkEnvironment(span);
  }

  #checkEnvironment(span: Span): void {
    let size = 0;
    for (const [name, value] of this.#env) size += name.length + value.length + 2;
    if (size > MAX_ENVIRONMENT) throw new InstructionError(span, `all variables together are larger than 1 MiB`);
  }

  #expose(values: readonly Word[]): { createdBy: string } {
    const ports = values.flatMap((value) =>
      this.#expand(value, { escape: this.#options.escape }).words.flatMap((word) => {
        try {
          return parsePorts(word);
        } catch (error) {
          if (error instanceof PortError) throw new InstructionError(value.span, error.message, { cause: error });
          throw error;
        }
      }),
    );
    const [first] = values;
    if (first !== undefined) {
      this.#addKeys(
        "ExposedPorts",
        ports.map((port) => [port, {}] as const),
        first.span,
      );
    }
    return { createdBy: `EXPOSE [${ports.join(" ")}]` };
  }

  #signal(value: Word): string {
    const signal = this.#word(value);
    const name = signal.toUpperCase().replace(/^SIG/, "");
    const number = /^\d{1,3}$/.test(name) ? Number(name) : 0;
    if (
      (number >= 1 && number <= 64) ||
      signals.has(name) ||
      /^RT(MIN(\+\d|\+1[0-5])?|MAX(-\d|-1[0-4])?)$/.test(name)
    ) {
      return signal;
    }
    throw new InstructionError(value.span, `there is no signal ${quote(signal)}`, {
      suggestion: "write SIGTERM, or 15",
    });
  }
}

const signals: ReadonlySet<string> = new Set(
  (
    "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP " +
    "TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ"
  ).split(" "),
);
