import { newId, newToken } from "./token.ts";
import { parseCloneUrl } from "./clone-url.ts";
import type { Store } from "./store.ts";

export interface Repository {
  readonly id: string;
  /** As the forge shows it: `owner/name`. */
  readonly name: string;
  /** May carry credentials: never answered, never logged. */
  readonly cloneUrl: string;
  /** Signs its webhooks. */
  readonly secret: string;
  readonly createdAtMs: number;
}

const columns = "id, name, clone_url AS cloneUrl, secret, created_at_ms AS createdAtMs";

/** A repository of that name exists. */
export class NameTakenError extends Error {
  override readonly name = "NameTakenError";
}

/**
 * Registers a repository; makes a webhook secret if none is given.
 *
 * @throws {CloneUrlError} If git must not be given this URL.
 * @throws {NameTakenError} If the name is taken.
 */
export function addRepository(
  store: Store,
  repository: { readonly name: string; readonly cloneUrl: string; readonly secret?: string | undefined },
): Repository {
  parseCloneUrl(repository.cloneUrl);
  const added: Repository = {
    id: newId("r"),
    name: repository.name,
    cloneUrl: repository.cloneUrl,
    secret: repository.secret ?? newToken(),
    createdAtMs: Date.now(),
  };
  return store.transaction(
    () => {
      if (findRepositoryByName(store, added.name)) {
        throw new NameTakenError(`Cannot add repository "${added.name}": there is one of that name; delete it first`);
      }
      store.run(
        "INSERT INTO repositories (id, name, clone_url, secret, created_at_ms) VALUES (?, ?, ?, ?, ?)",
        added.id,
        added.name,
        added.cloneUrl,
        added.secret,
        added.createdAtMs,
      );
      return added;
    },
    { durable: true },
  );
}

export function findRepository(store: Store, id: string): Repository | undefined {
  return store.get<Repository>(`SELECT ${columns} FROM repositories WHERE id = ?`, id);
}

export function findRepositoryByName(store: Store, name: string): Repository | undefined {
  return store.get<Repository>(`SELECT ${columns} FROM repositories WHERE name = ?`, name);
}

/** Lists all repositories by name. */
export function listRepositories(store: Store): Repository[] {
  return store.all<Repository>(`SELECT ${columns} FROM repositories ORDER BY name`);
}

/** Forgets a repository with its deliveries and builds; their log files are the caller's to remove. */
export function removeRepository(store: Store, id: string): void {
  store.transaction(() => store.run("DELETE FROM repositories WHERE id = ?", id), { durable: true });
}
