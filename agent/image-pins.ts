/** What the tags of images stand for in a build. */
import { type ClaimedJob, isBuiltImagePin } from "../queue/index.ts";
import type { ImagePins } from "../runtime/index.ts";
import type { ServerClient } from "./server-client.ts";

/** For the jobs of one build in this process: the first proposal holds. */
export function sharedPins(): ImagePins {
  const pins = new Map<string, string>();
  return {
    find: (name) => pins.get(name),
    agree: (name, digest) => {
      if (isBuiltImagePin(name)) pins.set(name, digest);
      return Promise.resolve(pins.getOrInsert(name, digest));
    },
  };
}

/** For one attempt: the server knows what the other jobs of its build, on whatever agents, have proposed. */
export function attemptPins(claimed: ClaimedJob, client: ServerClient, signal: AbortSignal): ImagePins {
  const pins = new Map(Object.entries(claimed.images));
  return {
    find: (name) => pins.get(name),
    agree: async (name, digest) => {
      const agreed = await client.agreeOnImage(claimed, { name, digest }, signal);
      pins.set(name, agreed);
      return agreed;
    },
  };
}
