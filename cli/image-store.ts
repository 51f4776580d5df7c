/** What the verbs of `slipway image` share: the store, names, what is shown while something takes long. */
import type { ImageLease, ImageStore, NamedImage, StoredImage, StoredIndex } from "../runtime/index.ts";
import { type Usage, UsageError, type Values } from "./arguments.ts";
import { findRegistrySettings, imageStoreDir, registriesOption } from "./registries.ts";
import { StopSignals } from "./signals.ts";
import { type Context, dataDirOption, exitCodes } from "./verb.ts";

export const storeOptions = { "data-dir": dataDirOption } as const;
export const transferOptions = {
  quiet: { short: "q", help: "Show no progress" },
  registries: registriesOption,
  "data-dir": dataDirOption,
} as const;
export const jsonOption = { help: "Print JSON" } as const;

type StoreValues = Values<typeof storeOptions>;
type TransferValues = Values<typeof transferOptions>;

/** The store that the agents of this data directory use. Made if there is none yet. */
export async function openStore(values: StoreValues, context: Context): Promise<ImageStore> {
  const { ImageStore: Store, imageStorePath } = await import("../runtime/images.ts");
  return await Store.open(imageStorePath(imageStoreDir(values, context)));
}

/** Everything that a verb needs that talks to registries; disposing it ends connections and the hold on images. */
export async function openTransfer(values: TransferValues, context: Context) {
  const { ImageLease: Lease, RegistryClient } = await import("../runtime/images.ts");
  const store = await openStore(values, context);
  const progress = new Progress(context, values.quiet);
  const client = new RegistryClient(await findRegistrySettings(values, context), {
    onRetry: (error, waitMs) => progress.note(`${error.message}; trying again in ${Math.ceil(waitMs / 1000)} s`),
  });
  const lease = new Lease();
  const signals = new StopSignals();
  signals.stop.addEventListener("abort", () => process.exit(exitCodes.buildFailed));
  return {
    store,
    client,
    lease,
    progress,
    signal: signals.drain,
    [Symbol.dispose]: () => {
      progress.clear();
      signals[Symbol.dispose]();
      lease[Symbol.dispose]();
      client[Symbol.dispose]();
    },
  };
}

/**
 * Finds an image by what a person calls it: a name as for Docker, or a digest.
 *
 * @throws {UsageError} If there is none.
 */
export async function findImage(
  store: ImageStore,
  text: string,
  lease?: ImageLease,
): Promise<{ readonly named: NamedImage; readonly image: StoredImage }> {
  const { formatReference, parseReference, readStoredImage } = await import("../runtime/images.ts");
  const named = /^sha256:[0-9a-f]{12,64}$/.test(text)
    ? (await store.names.list()).find(
        ({ manifest, resolved }) => manifest.digest.startsWith(text) || resolved?.startsWith(text),
      )
    : await store.names.get(formatReference(parseName(text, parseReference)));
  const image = named && (await readStoredImage(store, named.manifest.digest, lease, { platform: "any" }));
  if (named === undefined || image === undefined) {
    throw new UsageError(`There is no image ${JSON.stringify(text)} in the store: slipway image pull ${text}`);
  }
  return { named, image };
}

/** The index that a name of several platforms stands for; undefined for a name of one image. */
export async function findIndex(
  store: ImageStore,
  named: NamedImage,
  lease: ImageLease,
): Promise<StoredIndex | undefined> {
  const { readStoredIndex } = await import("../runtime/images.ts");
  if (named.resolved === undefined || named.resolved === named.manifest.digest) return undefined;
  return await readStoredIndex(store, named.resolved, lease);
}

/** Parses the name of an image; what is wrong with it is a mistake on the command line. */
export function parseName<T>(text: string, parse: (text: string) => T): T {
  try {
    return parse(text);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** One line at the bottom of a terminal; nothing where there is none. */
export class Progress {
  readonly #context: Context;
  readonly #shown: boolean;
  readonly #parts = new Map<string, { readonly done: number; readonly total: number }>();
  #line = "";
  #drawnAtMs = 0;

  constructor(context: Context, quiet: boolean) {
    this.#context = context;
    this.#shown = !quiet && context.errorIsTerminal;
  }

  update(verb: string, part: string, done: number, total: number): void {
    this.#parts.set(part, { done, total });
    const nowMs = performance.now();
    if (!this.#shown || nowMs - this.#drawnAtMs < 100) return;
    this.#drawnAtMs = nowMs;
    let bytes = 0;
    let all = 0;
    let whole = 0;
    for (const each of this.#parts.values()) {
      bytes += each.done;
      all += each.total;
      if (each.done === each.total) whole++;
    }
    this.#draw(`${verb}: ${whole} of ${this.#parts.size} parts, ${mebibytes(bytes)} of ${mebibytes(all)} MiB`);
  }

  /** A line that stays. */
  note(text: string): void {
    this.clear();
    this.#context.warn(`slipway: ${text}`);
  }

  clear(): void {
    if (this.#line !== "") this.#draw("");
  }

  #draw(line: string): void {
    this.#context.writeError(`\r\x1b[K${line}`);
    this.#line = line;
  }
}

function mebibytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(bytes < 100 * 2 ** 20 ? 1 : 0);
}

/** The usage of a verb that takes names of images. */
export function operandsUsage(operands: string, least: number): Pick<Usage, "operands" | "count"> {
  return { operands, count: { least, most: 1000 } };
}
