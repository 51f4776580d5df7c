/** What the tags of images stand for in a build: whichever job asks a registry first, its answer holds for all. */
import { isBuiltImagePin } from "../queue/index.ts";
import { HttpError } from "./http-error.ts";
import type { Store } from "./store.ts";

/** More than the steps of any build name. */
const MAX_PINS = 10_000;

/**
 * Pins a name to a digest unless another job of the build has; what a job has built itself, it pins anew.
 *
 * @returns The digest that holds.
 * @throws {HttpError} 400 if the build has far too many.
 */
export function agreeOnImage(
  store: Store,
  buildId: string,
  pin: { readonly name: string; readonly digest: string },
): string {
  return store.transaction(() => {
    const found = store.get<{ digest: string }>(
      "SELECT digest FROM image_pins WHERE build_id = ? AND name = ?",
      buildId,
      pin.name,
    );
    if (found !== undefined) {
      if (!isBuiltImagePin(pin.name)) return found.digest;
      const { name, digest } = pin;
      store.run("UPDATE image_pins SET digest = ? WHERE build_id = ? AND name = ?", digest, buildId, name);
      return digest;
    }
    const { count } = store.get<{ count: number }>(
      "SELECT count(*) AS count FROM image_pins WHERE build_id = ?",
      buildId,
    ) ?? {
      count: 0,
    };
    if (count >= MAX_PINS) throw new HttpError(400, `The build has pinned ${MAX_PINS} images already`);
    store.run("INSERT INTO image_pins (build_id, name, digest) VALUES (?, ?, ?)", buildId, pin.name, pin.digest);
    return pin.digest;
  });
}

/** What the jobs of a build have agreed on so far: names in full to digests. */
export function imagePins(store: Store, buildId: string): Record<string, string> {
  const rows = store.all<{ name: string; digest: string }>(
    "SELECT name, digest FROM image_pins WHERE build_id = ?",
    buildId,
  );
  return Object.fromEntries(rows.map(({ name, digest }) => [name, digest]));
}
