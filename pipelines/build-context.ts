/** What a build takes files from beside its own context, by the names that a Dockerfile has for it. */
import { dictionary } from "./collection.ts";
import { checkReference } from "./image-name.ts";
import { LIMITS } from "./limits.ts";
import type { BuildContextSpec } from "./pipeline.ts";
import { clean, leadsOut, path } from "./repository-path.ts";
import { exceed, mismatch, refuse, type Shape } from "./shape.ts";
import { quote } from "./suggestion.ts";
import { templated } from "./templated.ts";
import { scalarText } from "./value.ts";
import { findVariables } from "./variables.ts";

const image = /^docker-image:\/\/(.*)$/s;
const url = /^(?:https?|git):\/\//;

const place: Shape<string> = {
  expected: "a directory of the repository, docker-image://NAME or a URL",
  schema: { type: "string", minLength: 1, maxLength: LIMITS.pathLength },
  read(node, at) {
    const text = scalarText(node);
    if (text === undefined || text === "") return mismatch(node, at, this.expected);
    if (text.length > LIMITS.pathLength) return exceed(node, at, `${text.length} characters`, LIMITS.pathLength);
    if (url.test(text)) {
      if (/\s/.test(text)) return refuse(node, at, "an address has no spaces");
      return text;
    }
    const name = image.exec(text)?.[1];
    if (name !== undefined) {
      const fault = checkReference(findVariables(name).fill(() => "x"));
      return fault === undefined
        ? text
        : refuse(node, at, fault.problem, 'write a name like "docker-image://alpine:3"');
    }
    if (/^(?:ssh:\/\/|git@)/.test(text))
      return refuse(node, at, "the agent gives no ssh keys away", "write its https address");
    if (/^[a-z-]+:\/\//.test(text)) {
      return refuse(
        node,
        at,
        "it is no such place",
        "write a directory, docker-image://NAME, or an address with https://",
      );
    }
    const directory = path.read(node, at);
    if (directory === undefined || !leadsOut(directory)) return directory;
    return refuse(node, at, "it leads out of the repository", "name something in the repository");
  },
};

const namePattern = /^[a-z0-9][a-z0-9._:/-]{0,254}$/;

/** `contexts` of a build. */
export const contexts = dictionary({
  expected: "a mapping from names to directories, images and URLs",
  plural: "contexts",
  value: templated(place),
  namePattern: namePattern.source,
  checkName(name, span, { problems }) {
    if (namePattern.test(name)) return true;
    const help = "a context is named like a stage or an image, in small letters";
    problems.error(span, `the name ${quote(name)} cannot be used: ${help}`);
    return false;
  },
  max: LIMITS.buildContexts,
  suggestion: 'write "contexts:" and below it "NAME: directory" for each',
});

/** What a value of `contexts` stands for. */
export function describeContext(text: string): BuildContextSpec {
  const name = image.exec(text)?.[1];
  if (name !== undefined) return { image: name };
  return url.test(text) ? { url: text } : { directory: clean(text) };
}
