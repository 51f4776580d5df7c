/**
 * `slipway oci`: an OCI runtime for those who bring their own bundles: Podman, containerd, validation suites.
 *
 * Options and output are runc's where the specification leaves them open, because that is what callers expect.
 */
import { closeSync, constants, existsSync, openSync, readFileSync, writeSync } from "node:fs";
import { resolve } from "node:path";
import type * as OciModule from "../runtime/oci.ts";
import type { OciConfig, OciProcess } from "../runtime/oci.ts";
import { helpText, parseArguments, parseCount, table, UsageError, type Options, type Usage } from "./arguments.ts";
import { didYouMean } from "./did-you-mean.ts";
import { type OciCommand, type OciGlobal, oneId, splitCommand } from "./oci-command.ts";
import { controlCommands, controlUsages } from "./oci-control.ts";
import { exitCodes, type Context, type Verb } from "./verb.ts";

const globalOptions = {
  root: {
    value: "DIR",
    help: "Where the state of containers is kept [default: /run/slipway/oci; XDG_RUNTIME_DIR/slipway/oci without root]",
  },
  log: { value: "FILE", help: "Also write errors and warnings there" },
  "log-format": { value: "FORMAT", help: "text or json [default: text]" },
  "log-level": { value: "LEVEL", help: "Accepted; errors and warnings are always logged" },
  debug: { help: "Accepted; SLIPWAY_DEBUG=1 adds stack traces" },
  "systemd-cgroup": { help: "linux.cgroupsPath is SLICE:PREFIX:NAME; directories are made, systemd is not asked" },
  "cgroup-manager": { value: "NAME", help: "cgroupfs, systemd (as --systemd-cgroup) [default: cgroupfs]" },
  rootless: { value: "WORD", help: "Accepted: a user without privileges has containers in a user namespace" },
  version: { short: "v", help: "Show the versions" },
} as const satisfies Options;

const bundleOptions = {
  bundle: { short: "b", value: "DIR", help: "The bundle [default: the current directory]" },
  config: { short: "f", value: "FILE", help: "The configuration, from the bundle on [default: config.json]" },
  "pid-file": { value: "FILE", help: "Write the process's id there" },
  "console-socket": { value: "SOCKET", help: "Send the terminal's master end there" },
  "pidfd-socket": { value: "SOCKET", help: "Send a descriptor of the process there, see pidfd_open(2)" },
  "preserve-fds": { value: "COUNT", help: "Pass so many descriptors from 3 on to the program [default: 0]" },
  "no-pivot": { help: "Change the root with chroot, for a root file system on a RAM disk" },
  "no-new-keyring": { help: "Keep the caller's session keyring" },
} as const satisfies Options;

const usages = {
  create: {
    name: "oci create",
    summary: "Create a container from a bundle; its program waits for start",
    ...oneId,
    options: bundleOptions,
    examples: [["slipway oci create --bundle /srv/hello hello", "Create it"]],
  },
  run: {
    name: "oci run",
    summary: "Create a container, start it, wait for its end and delete it",
    ...oneId,
    options: {
      ...bundleOptions,
      detach: { short: "d", help: "Do not wait" },
      keep: { help: "Do not delete it when it has ended" },
    },
    examples: [["slipway oci run --bundle /srv/hello hello", "Run it here"]],
  },
  start: {
    name: "oci start",
    summary: "Start the program of a created container",
    ...oneId,
    options: {},
    examples: [["slipway oci start hello", "Start it"]],
  },
  state: {
    name: "oci state",
    summary: "Print the state of a container as JSON",
    ...oneId,
    options: {},
    examples: [["slipway oci state hello", "Print its state"]],
  },
  kill: {
    name: "oci kill",
    summary: "Send a signal to a container's process",
    operands: "ID [SIGNAL]",
    count: { least: 1, most: 2 },
    options: { all: { short: "a", help: "To all its processes" } },
    examples: [["slipway oci kill hello KILL", "End it; without a signal SIGTERM is sent"]],
  },
  delete: {
    name: "oci delete",
    summary: "Delete a stopped container",
    ...oneId,
    options: { force: { short: "f", help: "Kill it first if it runs, and succeed if there is none" } },
    examples: [["slipway oci delete hello", "Delete it"]],
  },
  exec: {
    name: "oci exec",
    summary: "Start a further process in a container",
    operands: "ID [COMMAND [ARGUMENT...]]",
    count: { least: 1, most: 100_000 },
    options: {
      process: { short: "p", value: "FILE", help: "The process as JSON, instead of a command" },
      cwd: { value: "DIR", help: "Its working directory" },
      env: { short: "e", value: "NAME=VALUE", multiple: true, help: "A variable of its environment" },
      user: { short: "u", value: "UID[:GID]", help: "Its user" },
      "additional-gids": { short: "g", value: "GID", multiple: true, help: "A further group of it" },
      cap: { short: "c", value: "CAPABILITY", multiple: true, help: "A further capability of it" },
      "no-new-privs": { help: "Set no_new_privs" },
      tty: { short: "t", help: "Give it a terminal" },
      "ignore-paused": { help: "Wait for a container that is paused instead of refusing" },
      detach: { short: "d", help: "Do not wait" },
      "pid-file": bundleOptions["pid-file"],
      "console-socket": bundleOptions["console-socket"],
      "pidfd-socket": bundleOptions["pidfd-socket"],
      "preserve-fds": bundleOptions["preserve-fds"],
      cgroup: {
        value: "[CONTROLLER[,CONTROLLER]:]PATH",
        multiple: true,
        help: "A cgroup below the container's for it; with controllers on cgroup v1, without for all",
      },
    },
    examples: [["slipway oci exec hello ps", "Run ps in it"]],
  },
  ...controlUsages,
  list: {
    name: "oci list",
    summary: "List containers",
    options: {
      format: { short: "f", value: "FORMAT", help: "table or json [default: table]" },
      quiet: { short: "q", help: "Show ids only" },
    },
    examples: [["slipway oci list", "List them"]],
  },
  spec: {
    name: "oci spec",
    summary: "Write a config.json to begin with",
    options: {
      bundle: { short: "b", value: "DIR", help: "The bundle [default: the current directory]" },
      rootless: { help: "For a user namespace in which the user is root, with the host's network" },
    },
    examples: [["slipway oci spec --bundle /srv/hello", "Write /srv/hello/config.json"]],
  },
  features: {
    name: "oci features",
    summary: "Print what this runtime supports as JSON",
    options: {},
    examples: [["slipway oci features", "Print it"]],
  },
} as const satisfies Readonly<Record<string, Usage>>;

const commands: Readonly<Record<keyof typeof usages, OciCommand>> = {
  create: async (argv, context, global) => {
    const { values, operands } = parseArguments(usages.create, argv);
    const oci = await import("../runtime/oci.ts");
    const options = createOptions(values, operands[0] ?? "", { context, global, oci });
    const config = oci.readBundleConfig(options.bundle, options.configFile);
    await oci.enterForContainer(config, context.environment, options.preserveFds);
    oci.createContainer(options);
    return exitCodes.success;
  },
  run,
  start: async (argv, _, global) => {
    const { operands } = parseArguments(usages.start, argv);
    const { startContainer } = await import("../runtime/oci.ts");
    startContainer(global.root, operands[0] ?? "", global);
    return exitCodes.success;
  },
  state: async (argv, context, { root }) => {
    const { operands } = parseArguments(usages.state, argv);
    const { containerState } = await import("../runtime/oci.ts");
    context.print(`${JSON.stringify(containerState(root, operands[0] ?? ""), undefined, 2)}\n`);
    return exitCodes.success;
  },
  kill: async (argv, _, { root }) => {
    const { values, operands } = parseArguments(usages.kill, argv);
    const { killContainer, signalNumber } = await import("../runtime/oci.ts");
    killContainer(root, operands[0] ?? "", signalNumber(operands[1] ?? "TERM"), { all: values.all });
    return exitCodes.success;
  },
  delete: async (argv, _, global) => {
    const { values, operands } = parseArguments(usages.delete, argv);
    const { deleteContainer } = await import("../runtime/oci.ts");
    deleteContainer(global.root, operands[0] ?? "", { ...global, force: values.force });
    return exitCodes.success;
  },
  exec,
  ...controlCommands,
  list,
  spec: async (argv, context) => {
    const { values } = parseArguments(usages.spec, argv);
    const { writeExampleConfig } = await import("../runtime/oci.ts");
    writeExampleConfig(resolve(context.directory, values.bundle ?? "."), { rootless: values.rootless });
    return exitCodes.success;
  },
  features: async (argv, context) => {
    parseArguments(usages.features, argv);
    const { ociFeatures } = await import("../runtime/oci.ts");
    context.print(`${JSON.stringify(ociFeatures(slipwayVersion()), undefined, 2)}\n`);
    return exitCodes.success;
  },
};

function createOptions(
  values: ReturnType<typeof parseArguments<typeof bundleOptions>>["values"],
  id: string,
  { context, global, oci }: { readonly context: Context; readonly global: OciGlobal; readonly oci: typeof OciModule },
) {
  const { root, systemdCgroup, warn, environment } = global;
  const { "pid-file": pidFile, "console-socket": consoleSocket, "pidfd-socket": pidfdSocket } = values;
  // What systemd hands down (sd_listen_fds(3)) goes on to the program.
  const listening = Number(context.environment["LISTEN_FDS"] ?? 0) || 0;
  return {
    root,
    id,
    bundle: resolve(context.directory, values.bundle ?? "."),
    ...(values.config === undefined ? {} : { configFile: values.config }),
    ...(pidFile === undefined ? {} : { pidFile: resolve(context.directory, pidFile) }),
    ...(consoleSocket === undefined ? {} : { consoleSocket: resolve(context.directory, consoleSocket) }),
    ...(pidfdSocket === undefined ? {} : { pidfdSocket: resolve(context.directory, pidfdSocket) }),
    preserveFds: oci.callersDescriptors(listening + count("--preserve-fds", values["preserve-fds"])),
    listenFds: listening,
    usesPivot: !values["no-pivot"],
    newKeyring: !values["no-new-keyring"],
    systemdCgroup,
    warn,
    environment,
  };
}

function count(option: string, text: string | undefined): number {
  return text === undefined ? 0 : parseCount(option, text, { least: 0, most: 10_000 });
}

async function run(argv: readonly string[], context: Context, global: OciGlobal): Promise<number> {
  const { values, operands } = parseArguments(usages.run, argv);
  const oci = await import("../runtime/oci.ts");
  const options = createOptions(values, operands[0] ?? "", { context, global, oci });
  const config = oci.readBundleConfig(options.bundle, options.configFile);
  await oci.enterForContainer(config, context.environment, options.preserveFds);
  const terminal = terminalSocket(oci, config.process?.terminal, options.consoleSocket, values.detach);
  const record = oci.createContainer({ ...options, ...(terminal === undefined ? {} : { consoleFd: terminal.theirs }) });
  const remove = () => oci.deleteContainer(global.root, record.id, { ...global, force: true });
  const start = () => {
    try {
      oci.startContainer(global.root, record.id, global);
    } catch (error) {
      remove();
      throw error;
    }
  };
  if (values.detach) {
    start();
    return exitCodes.success;
  }
  const code = await oci.foreground(record.pid, terminal, start);
  if (!values.keep) remove();
  return code;
}

function terminalSocket(
  oci: typeof OciModule,
  wanted: boolean | undefined,
  consoleSocket: string | undefined,
  detach: boolean,
) {
  if (!wanted || consoleSocket !== undefined) return undefined;
  if (detach) throw new UsageError("A detached process with a terminal needs --console-socket");
  return new oci.TerminalSocket();
}

async function exec(argv: readonly string[], context: Context, { root, warn }: OciGlobal): Promise<number> {
  // What follows the id is the command's, options included.
  const { own, command } = splitCommand(argv, usages.exec.options);
  const { values, operands } = parseArguments(usages.exec, own);
  const oci = await import("../runtime/oci.ts");
  const preserveFds = oci.callersDescriptors(count("--preserve-fds", values["preserve-fds"]));
  const { "pid-file": pidFile, "console-socket": consoleSocket, "pidfd-socket": pidfdSocket } = values;
  for (const name of values.cap) {
    if (!oci.isCapability(name)) throw new UsageError(`--cap: there is no capability ${JSON.stringify(name)}`);
  }
  const given = values.process === undefined ? undefined : readFileSync(values.process, "utf8");
  if (given === undefined && command.length === 0)
    throw new UsageError("slipway oci exec needs a command or --process");
  const process = (config: OciConfig): OciProcess => {
    const before = given === undefined ? (config.process ?? { cwd: "/" }) : oci.parseOciProcess(given);
    const { consoleSize: _, terminal: __, ...rest } = before;
    if (given !== undefined) return { ...before, terminal: (before.terminal ?? false) || values.tty };
    const [uid, gid] =
      values.user?.split(":").map((text) => parseCount("--user", text, { least: 0, most: 999_999_999 })) ?? [];
    const more = values["additional-gids"].map((text) =>
      parseCount("--additional-gids", text, { least: 0, most: 999_999_999 }),
    );
    return {
      ...rest,
      args: command,
      env: [...(before.env ?? []), ...values.env],
      cwd: values.cwd ?? before.cwd,
      terminal: values.tty,
      user: {
        ...before.user,
        ...(uid === undefined ? {} : { uid }),
        ...(gid === undefined ? {} : { gid }),
        additionalGids: [...(before.user?.additionalGids ?? []), ...more],
      },
      ...(values.cap.length === 0 ? {} : { capabilities: withCapabilities(before.capabilities, values.cap) }),
      ...(values["no-new-privs"] ? { noNewPrivileges: true } : {}),
    };
  };
  const wantsTerminal = given === undefined ? values.tty : values.tty || /"terminal"\s*:\s*true/.test(given);
  const terminal = terminalSocket(oci, wantsTerminal, consoleSocket, values.detach);
  const pid = oci.execInContainer({
    root,
    id: operands[0] ?? "",
    process,
    ...(pidFile === undefined ? {} : { pidFile: resolve(context.directory, pidFile) }),
    ...(consoleSocket === undefined ? {} : { consoleSocket: resolve(context.directory, consoleSocket) }),
    ...(pidfdSocket === undefined ? {} : { pidfdSocket: resolve(context.directory, pidfdSocket) }),
    subCgroups: values.cgroup,
    ...(terminal === undefined ? {} : { consoleFd: terminal.theirs, onTerminal: () => terminal.take() }),
    preserveFds,
    acceptsPaused: values["ignore-paused"],
    warn,
  });
  return values.detach ? exitCodes.success : oci.foreground(pid, terminal);
}

/** Ambient only where the configuration has made one inheritable: without that the kernel refuses it. */
function withCapabilities(
  sets: OciProcess["capabilities"],
  more: readonly string[],
): NonNullable<OciProcess["capabilities"]> {
  const inheritable = more.filter((name) => sets?.inheritable?.includes(name));
  return {
    ...sets,
    ambient: [...(sets?.ambient ?? []), ...inheritable],
    bounding: [...(sets?.bounding ?? []), ...more],
    permitted: [...(sets?.permitted ?? []), ...more],
    effective: [...(sets?.effective ?? []), ...more],
  };
}

async function list(argv: readonly string[], context: Context, { root }: OciGlobal): Promise<number> {
  const { values } = parseArguments(usages.list, argv);
  const { listStores } = await import("../runtime/oci.ts");
  const rows = listStores(root).flatMap((store) => {
    try {
      const record = store.look();
      const { ociVersion, id, pid, status, bundle, annotations } = store.state(record);
      const { rootPath: rootfs, created } = record;
      return [{ ociVersion, id, pid, status, bundle, rootfs, created, annotations, owner: nameOfUser(store.owner) }];
    } catch {
      return []; // deleted meanwhile
    }
  });
  if (values.quiet) context.print(rows.map((row) => `${row.id}\n`).join(""));
  else if (values.format === "json") context.print(`${JSON.stringify(rows)}\n`);
  else {
    const lines = [
      ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"],
      ...rows.map((row) => [row.id, `${row.pid}`, row.status, row.bundle, row.created, row.owner]),
    ];
    const widths = lines[0]?.map((_, i) => Math.max(...lines.map((line) => line[i]?.length ?? 0))) ?? [];
    context.print(
      lines
        .map(
          (line) =>
            `${line
              .map((word, i) => word.padEnd(widths[i] ?? 0))
              .join("  ")
              .trimEnd()}\n`,
        )
        .join(""),
    );
  }
  return exitCodes.success;
}

/** As runc's: a uid without a name has a #. */
function nameOfUser(uid: number | undefined): string {
  const accounts = existsSync("/etc/passwd") ? readFileSync("/etc/passwd", "utf8") : "";
  const line = accounts.split("\n").find((each) => each.split(":")[2] === `${uid}`);
  return line?.split(":")[0] ?? `#${uid ?? ""}`;
}

function slipwayVersion(): string {
  const text = readFileSync(new URL("../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

const usage: Usage = {
  name: "oci",
  operands: "COMMAND",
  summary: "Run OCI bundles: an OCI runtime for Podman, containerd and others",
  description: [
    "Commands:",
    ...table(Object.entries(usages).map(([name, { summary }]) => [name, summary] as const)),
    "",
    "slipway oci COMMAND --help shows a command's options.",
  ].join("\n"),
  options: globalOptions,
  examples: [["slipway oci run --bundle /srv/hello hello", "Run a bundle"]],
};

/** Separates the options before the command from what belongs to it. */
function splitGlobal(argv: readonly string[]): { before: readonly string[]; after: readonly string[] } {
  const options: Options = globalOptions;
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] ?? "";
    if (!word.startsWith("-")) return { before: argv.slice(0, i), after: argv.slice(i) };
    const option = options[word.replace(/^--/, "")];
    if (option?.value !== undefined) i++;
  }
  return { before: argv, after: [] };
}

async function runOci(argv: readonly string[], context: Context): Promise<number> {
  const { before, after } = splitGlobal(argv);
  const { values } = parseArguments(
    usage as Usage<typeof globalOptions>,
    before.filter((word) => word !== "--help" && word !== "-h"),
  );
  if (values.version) {
    const { ociVersion } = await import("../runtime/oci.ts");
    context.print(`slipway version ${slipwayVersion()}\nspec: ${ociVersion}\n`);
    return exitCodes.success;
  }
  const [name, ...words] = after;
  if (name === undefined) {
    context.print(helpText(usage));
    return before.length === 0 ? exitCodes.wrongUsage : exitCodes.success;
  }
  if (!Object.hasOwn(commands, name)) {
    throw new UsageError(
      `slipway oci has no command ${JSON.stringify(name)}${didYouMean(name, Object.keys(commands))}`,
    );
  }
  const command = name as keyof typeof usages;
  const own = command === "exec" || command === "ps" ? splitCommand(words, usages[command].options).own : words;
  if (own.includes("--help") || own.includes("-h")) {
    context.print(helpText(usages[command]));
    return exitCodes.success;
  }
  const log = logger(values);
  const { defaultRoot, programEnvironment } = await import("../runtime/oci.ts");
  const global: OciGlobal = {
    root: resolve(context.directory, values.root ?? defaultRoot(context.environment)),
    environment: programEnvironment(context.environment),
    systemdCgroup: values["systemd-cgroup"] || values["cgroup-manager"] === "systemd",
    warn: (message) => {
      log("warning", message);
      if (values.log === undefined) context.warn(`slipway: ${message}`);
    },
  };
  try {
    if (values.log !== undefined) checkLog(values.log);
    return await commands[command](words, context, global);
  } catch (error) {
    log("error", error instanceof Error ? error.message : String(error));
    // As runc's: what a program that was started answers is told from "it was not started" by callers of exec alone.
    if (error instanceof Error) Object.assign(error, { exitCode: command === "exec" ? 255 : 1 });
    throw error;
  }
}

/** A caller who reads errors from a file must not wait for one that cannot be written. */
function checkLog(file: string): void {
  try {
    appendLog(file, "");
  } catch (error) {
    throw new Error(`Cannot write the log "${file}": ${(error as NodeJS.ErrnoException).code}`, { cause: error });
  }
}

/** Without waiting: a log may be a FIFO that nobody reads, and that is an error then, ENXIO. */
function appendLog(file: string, text: string): void {
  const { O_WRONLY, O_APPEND, O_CREAT, O_NONBLOCK, O_NOCTTY } = constants;
  const fd = openSync(file, O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY, 0o644);
  try {
    if (text !== "") writeSync(fd, text);
  } finally {
    closeSync(fd);
  }
}

/** Lines as callers of runc parse them. */
function logger(values: { readonly log: string | undefined; readonly "log-format": string | undefined }) {
  const { log: file, "log-format": format = "text" } = values;
  if (format !== "text" && format !== "json")
    throw new UsageError(`--log-format must be text or json, not "${format}"`);
  return (level: "error" | "warning", msg: string): void => {
    if (file === undefined) return;
    const time = new Date().toISOString();
    const line =
      format === "json"
        ? JSON.stringify({ level, msg, time })
        : `time="${time}" level=${level} msg=${JSON.stringify(msg)}`;
    try {
      appendLog(file, `${line}\n`);
    } catch {
      // The caller hears of it by the exit code and standard error.
    }
  };
}

export const verbs: Readonly<Record<string, Verb>> = { oci: { usage, run: runOci, ownHelp: true } };
