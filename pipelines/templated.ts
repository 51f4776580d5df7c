/** Values in which variables of a step stand. */
import { refuse, type Shape } from "./shape.ts";
import { checkVariables } from "./variables.ts";

/** Text in which `${NAME}` stands for a variable of the step. */
export function templated(inner: Shape<string>): Shape<string> {
  return {
    ...inner,
    read(node, place) {
      const text = inner.read(node, place);
      if (text === undefined) return undefined;
      const fault = checkVariables(text);
      return fault === undefined ? text : refuse(node, place, fault.problem, fault.suggestion);
    },
  };
}
