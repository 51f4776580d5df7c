/**
 * The server: webhooks in, builds planned, jobs handed out, logs and results kept and shown.
 *
 * A *delivery* is one webhook request, stored as it came before it is answered. An *attempt* is the n-th try at a job; its
 * token fences off every earlier try. The *store* (SQLite) is the source of truth, the *mirror* is the server's own copy of
 * a repository, the *scheduler* moves builds on, *events* are what a follower of a build is sent.
 */
export { Server, type ServerOptions } from "./server.ts";
export type { AttemptView, BuildSummary, BuildView, JobView, StepView } from "./view.ts";
export type { Diagnostics } from "./builds.ts";
