/**
 * The names of images in registries, read as Docker reads them.
 *
 * @see {@link https://github.com/distribution/reference} for the grammar
 */
import { digestPattern } from "./image-config.ts";
import { ImageError } from "./image-error.ts";

/** `node:24` is { registry: "docker.io", repository: "library/node", tag: "24" }. */
export interface ImageReference {
  /** Host, with a port where one is written: `ghcr.io`, `localhost:5000`, `[::1]:5000`. Lower case. */
  readonly registry: string;
  readonly repository: string;
  /** `latest` where neither tag nor digest is written. */
  readonly tag?: string;
  /** Names the image by what it is; the tag beside it says nothing then. */
  readonly digest?: string;
}

/** The registry meant where none is written. */
export const dockerHub = "docker.io";
const MAX_NAME_LENGTH = 255;
const hostPattern =
  /^(?:(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])(?:\.(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9]))*|\[[0-9a-f:.]{2,45}\])(?::([1-9]\d{0,4}))?$/i;
const componentPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const tagPattern = /^\w[\w.-]{0,127}$/;

/**
 * Parses the name of an image.
 *
 * @throws {ImageError} Saying what is wrong with it and, where that can be told, what was meant.
 */
export function parseReference(text: string): ImageReference {
  const fail = (why: string): never => {
    throw new ImageError(`Cannot use the image ${JSON.stringify(text.slice(0, 300))}: ${why}`);
  };
  const at = text.indexOf("@");
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !digestPattern.test(digest)) {
    fail('what follows the "@" is not a digest: sha256: and 64 hexadecimal digits');
  }
  const rest = at === -1 ? text : text.slice(0, at);
  // The colon of a port has a slash behind it.
  const colon = rest.indexOf(":", rest.lastIndexOf("/") + 1);
  const name = colon === -1 ? rest : rest.slice(0, colon);
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  if (tag !== undefined && !tagPattern.test(tag)) {
    fail(
      `${JSON.stringify(tag)} is not a tag: letters, digits, ".", "_" and "-", at most 128, the first not "." or "-"`,
    );
  }
  if (name === "") fail("it has no name");
  if (name.length > MAX_NAME_LENGTH) fail(`its name has ${name.length} characters, more than ${MAX_NAME_LENGTH}`);
  if (/:\/\//.test(text)) fail('a name has no "https://" in front');
  if (/^[0-9a-f]{64}$/.test(name)) fail("it is an image id, which only one machine knows; name a repository");
  const { registry, repository } = splitName(name);
  const port = hostPattern.exec(registry);
  if (port === null || Number(port[1] ?? 1) > 65_535) fail(`${JSON.stringify(registry)} is not a host`);
  for (const component of repository.split("/")) {
    if (componentPattern.test(component)) continue;
    const lower = component.toLowerCase();
    const help = componentPattern.test(lower) ? `; did you mean ${JSON.stringify(lower)}?` : "";
    fail(
      component === ""
        ? 'there is an empty part between two "/"'
        : `${JSON.stringify(component)} is not part of a name: lower-case letters and digits, separated by ".", "_", "__" or "-"${help}`,
    );
  }
  if (digest !== undefined) return { registry, repository, ...(tag === undefined ? {} : { tag }), digest };
  return { registry, repository, tag: tag ?? "latest" };
}

/** The first component is a host if it looks like one: nobody's user name has a dot, a colon or is "localhost". */
function splitName(name: string): { readonly registry: string; readonly repository: string } {
  const slash = name.indexOf("/");
  const first = slash === -1 ? "" : name.slice(0, slash);
  if (slash === -1 || !(/[.:]/.test(first) || first === "localhost" || first !== first.toLowerCase())) {
    return { registry: dockerHub, repository: slash === -1 ? `library/${name}` : name };
  }
  const registry = first.toLowerCase();
  const repository = name.slice(slash + 1);
  if (registry !== dockerHub && registry !== "index.docker.io") return { registry, repository };
  return { registry: dockerHub, repository: repository.includes("/") ? repository : `library/${repository}` };
}

/** The name in full, by which the store knows the image: `docker.io/library/node:24`, with the digest alone if there is one. */
export function formatReference({ registry, repository, tag, digest }: ImageReference): string {
  return digest === undefined ? `${registry}/${repository}:${tag ?? "latest"}` : `${registry}/${repository}@${digest}`;
}

/** The same repository, at a digest. */
export function pinReference({ registry, repository }: ImageReference, digest: string): ImageReference {
  return { registry, repository, digest };
}

/** As people write it: without `docker.io/library/`. */
export function familiarName(reference: ImageReference): string {
  return formatReference(reference).replace(/^docker\.io\/(library\/)?/, "");
}

/** Whether a host is this machine by its name alone. */
export function isLoopbackName(host: string): boolean {
  const name = host.replace(/:\d+$/, "");
  return name === "localhost" || /^127(\.\d{1,3}){3}$/.test(name) || name === "[::1]";
}
