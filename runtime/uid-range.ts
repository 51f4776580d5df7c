/** `size` host ids from `base` on: id 0 of the container is `base` on the host. Held until disposed; no other agent on this host has it. */
export interface UidRange extends Disposable {
  readonly base: number;
  readonly size: number;
}
