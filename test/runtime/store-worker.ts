/**
 * A process that works on an image store until it is killed, or looks at it: `store-worker.ts work|look DIRECTORY REGISTRY TAGS`.
 *
 * Says each name that it has given, once it has it, and each that it is going to take away.
 */
import { once } from "node:events";
import { createWriteStream, readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import {
  collectImages,
  exportArchive,
  ImageLease,
  ImageStore,
  importImage,
  defaultLayerLimits,
  parseReference,
  pullImage,
  readStoredImage,
  RegistryClient,
  type StoredImage,
} from "../../runtime/index.ts";
import { findLayers } from "../../runtime/stored-image.ts";

const [verb = "", directory = "", host = "", tags = ""] = process.argv.slice(2);
const store = await ImageStore.open(directory);

if (verb === "work") await work();
else console.log(JSON.stringify(await look()));

async function work(): Promise<never> {
  const client = new RegistryClient({}, { retryBaseMs: 1 });
  for (;;) {
    const tag = Math.floor(Math.random() * Number(tags));
    using lease = new ImageLease();
    const image = await pull(client, `${host}/t:${tag}`, lease);
    const archive = join(directory, `../archive-${process.pid}`);
    const pieces = Readable.from(exportArchive(image, { store, lease, client, name: `${host}/t:${tag}` }));
    await once(pieces.pipe(createWriteStream(archive)), "close");
    const imported = `localhost/imported:${tag}`;
    await importImage(archive, { store, lease, names: [imported] });
    console.log(`has ${imported}`);
    await rm(archive);
    lease[Symbol.dispose]();
    const gone = `${host}/t:${Math.floor(Math.random() * Number(tags))}`;
    console.log(`removes ${gone}`);
    await collectImages(store, { names: [gone], untagged: true });
  }
}

async function pull(client: RegistryClient, name: string, lease: ImageLease): Promise<StoredImage> {
  const options = { store, client, lease, limits: defaultLayerLimits, keepArchives: Math.random() < 0.5 };
  const { image } = await pullImage(parseReference(name), options);
  console.log(`has ${name}`);
  return image;
}

/** Every name, and what the files of its layers are. */
async function look(): Promise<{ readonly names: Record<string, string[] | null>; readonly left: readonly string[] }> {
  using lease = new ImageLease();
  const names: Record<string, string[] | null> = {};
  for (const { name, manifest } of await store.names.list()) {
    const image = await readStoredImage(store, manifest.digest, lease);
    const diffIds = image?.layers.map(({ diffId }) => diffId) ?? [];
    const layers = await findLayers(store, diffIds, lease);
    names[name] =
      layers?.map((files) =>
        readdirSync(join(files, "usr"))
          .map((file) => `${file} ${readFileSync(join(files, "usr", file)).length}`)
          .join(),
      ) ?? null;
  }
  return { names, left: readdirSync(join(directory, "tmp")) };
}
