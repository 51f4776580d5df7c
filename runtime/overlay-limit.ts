/** How many layers an overlay takes, and what is done about more. */

/** `OVL_MAX_STACK` of every kernel. */
export const OVERLAY_LAYERS = 500;
/** Where mount(2) wants the names of all in one page, some of which is for the other directories. */
export const OVERLAY_LAYERS_BY_PATH = 300;

/**
 * Tells which layers of a stack, base first, are to be an overlay of their own, read-only, that stands for all of them at the
 * bottom of the stack: the kernel stacks two overlays, no more. The base is empty where all fit as they are.
 *
 * @param most Layers that one overlay takes.
 */
export function splitLayers<T>(
  layers: readonly T[],
  most: number = OVERLAY_LAYERS,
): { readonly base: readonly T[]; readonly rest: readonly T[] } {
  if (layers.length <= most) return { base: [], rest: layers };
  const merged = layers.length - most + 1;
  return { base: layers.slice(0, merged), rest: layers.slice(merged) };
}
