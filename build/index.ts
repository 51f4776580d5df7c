/**
 * Builds images from Dockerfiles.
 *
 * A *Dockerfile* is a list of *stages*; a stage is a base image and *instructions* that change its files and its
 * *configuration*. What changes files makes a *layer*. The *context* is the directory that COPY and ADD take from.
 */
export type * from "./instruction.ts";
export { type ParsedDockerfile, parseDockerfile } from "./parse.ts";
