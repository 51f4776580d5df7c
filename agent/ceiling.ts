/** What an agent grants of the resources that a pipeline asks for. */
import type { IoLimits, Resources } from "../pipelines/index.ts";

/** The most that one step gets; a key that is absent lowers nothing. */
export type StepCeiling = Partial<Resources>;

/**
 * Lowers what a step asks for to every ceiling: a step gets the least of them. What is asked for is not refused, so that one
 * pipeline runs on agents of any size; a step that is killed for it is told.
 */
export function lowerResources(asked: Resources, ...ceilings: readonly (StepCeiling | undefined)[]): Resources {
  let granted = asked;
  for (const ceiling of ceilings) {
    if (ceiling === undefined) continue;
    const io = lowerIo(granted.io, ceiling.io);
    granted = {
      cpu: least(granted.cpu, ceiling.cpu),
      memoryBytes: least(granted.memoryBytes, ceiling.memoryBytes),
      pids: least(granted.pids, ceiling.pids),
      diskBytes: least(granted.diskBytes, ceiling.diskBytes),
      logBytes: least(granted.logBytes, ceiling.logBytes),
      ...(io !== undefined && { io }),
    };
  }
  return granted;
}

function lowerIo(asked: IoLimits | undefined, ceiling: IoLimits | undefined): IoLimits | undefined {
  if (asked === undefined || ceiling === undefined) return asked ?? ceiling;
  const keys = new Set([...Object.keys(asked), ...Object.keys(ceiling)] as (keyof IoLimits)[]);
  return Object.fromEntries([...keys].map((key) => [key, least(asked[key] ?? Infinity, ceiling[key])]));
}

function least(asked: number, ceiling: number | undefined): number {
  return ceiling === undefined ? asked : Math.min(asked, ceiling);
}
