/** The host of a command that starts containers by itself, without an agent. */
import { mkdirSync } from "node:fs";
import { release } from "node:os";
import { join } from "node:path";
import type { BuildMachine, OpenMachine } from "../build/index.ts";
import type { Host, HostOptions } from "../runtime/index.ts";

/** Opens the first state directory that no other command uses. */
export async function openHost(directory: string, options: Omit<HostOptions, "stateDir">): Promise<Host> {
  const { Host: RuntimeHost } = await import("../runtime/index.ts");
  for (let slot = 0; ; slot++) {
    try {
      return await RuntimeHost.open({ stateDir: join(directory, String(slot)), ...options });
    } catch (error) {
      if (!(error as Error).message.includes("another agent uses it") || slot === 999) throw error;
    }
  }
}

/** A host for one build, opened when its first command runs. */
export class LocalMachine implements BuildMachine, AsyncDisposable {
  readonly stateDir: string;
  readonly networkKind: BuildMachine["networkKind"];
  // From 6.15 on by descriptor, as the host tries out. By path works everywhere.
  readonly overlaysByPath = !isKernelSince(6, 15);
  readonly #directory: string;
  readonly #options: Omit<HostOptions, "stateDir">;
  readonly #stack = new AsyncDisposableStack();
  #opened: Promise<OpenMachine> | undefined;

  /** @param directory The same for all commands of a data directory, which share what is in it. */
  constructor(
    directory: string,
    options: Omit<HostOptions, "stateDir"> & { readonly networkKind: BuildMachine["networkKind"] },
  ) {
    const { networkKind, ...rest } = options;
    this.#directory = directory;
    this.stateDir = directory;
    this.networkKind = networkKind;
    this.#options = rest;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  open(): Promise<OpenMachine> {
    this.#opened ??= this.#open();
    return this.#opened;
  }

  async #open(): Promise<OpenMachine> {
    const host = this.#stack.use(await openHost(this.#directory, this.#options));
    const uidRange = this.#stack.use(host.claimLayerRange());
    const { networkKind } = this;
    const network = networkKind === "job" ? this.#stack.use(await host.claimNetwork()) : networkKind;
    return { host, uidRange, network };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#opened?.catch(() => {});
    await this.#stack.disposeAsync();
  }
}

function isKernelSince(major: number, minor: number): boolean {
  const [ours = 0, oursMinor = 0] = release().split(".").map(Number);
  return ours > major || (ours === major && oursMinor >= minor);
}
