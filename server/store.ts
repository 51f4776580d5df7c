import { chmodSync, closeSync, openSync } from "node:fs";
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { migrations } from "./schema.ts";

/**
 * The source of truth: one SQLite database, one process, synchronous calls that each take well under a millisecond.
 *
 * Every commit survives a killed process. `durable` transactions also survive a power cut before the call returns; the
 * write-ahead log is one file, so such a commit carries all earlier ones with it.
 */
export class Store implements Disposable {
  readonly #db: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  #inTransaction = false;

  private constructor(db: DatabaseSync) {
    this.#db = db;
  }

  /**
   * Opens or creates the database and brings its schema up to date.
   *
   * @throws {Error} If another process has it open, or a newer Slipway wrote it.
   */
  static open(path: string): Store {
    // Made here with its final mode: SQLite would make it world-readable, and it holds webhook secrets and clone URLs.
    closeSync(openSync(path, "a", 0o600));
    chmodSync(path, 0o600);
    const db = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: 2000 });
    try {
      // Exclusive: a second server on the same data would schedule everything twice.
      db.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;");
      migrate(db, path);
    } catch (error) {
      db.close();
      if (!(error instanceof Error && /database is locked/.test(error.message))) throw error;
      throw new Error(`Cannot open "${path}": another Slipway server uses this data directory; stop it first`, {
        cause: error,
      });
    }
    return new Store(db);
  }

  /** Reads the first row. `T` is what the statement selects; it is not checked. */
  get<T>(sql: string, ...values: SQLInputValue[]): T | undefined {
    return this.#prepare(sql).get(...values) as T | undefined;
  }

  /** Reads every row. */
  all<T>(sql: string, ...values: SQLInputValue[]): T[] {
    return this.#prepare(sql).all(...values) as T[];
  }

  /** Writes; returns how many rows changed. */
  run(sql: string, ...values: SQLInputValue[]): number {
    return Number(this.#prepare(sql).run(...values).changes);
  }

  /** Runs `body` in one transaction; nested calls join the outer one. `body` must be synchronous. */
  transaction<T>(body: () => T, options: { readonly durable?: boolean } = {}): T {
    if (this.#inTransaction) return body();
    if (options.durable) this.#db.exec("PRAGMA synchronous = FULL");
    try {
      this.#db.exec("BEGIN IMMEDIATE");
      this.#inTransaction = true;
      const result = body();
      this.#db.exec("COMMIT");
      return result;
    } catch (error) {
      if (this.#db.isTransaction) this.#db.exec("ROLLBACK");
      throw error;
    } finally {
      this.#inTransaction = false;
      if (options.durable) this.#db.exec("PRAGMA synchronous = NORMAL");
    }
  }

  [Symbol.dispose](): void {
    this.#statements.clear();
    this.#db.close();
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (!statement) this.#statements.set(sql, (statement = this.#db.prepare(sql)));
    return statement;
  }
}

function migrate(db: DatabaseSync, path: string): void {
  const { user_version: version } = db.prepare("PRAGMA user_version").get() as { user_version: number };
  if (version > migrations.length) {
    throw new Error(
      `Cannot open "${path}": its schema is version ${version}, this Slipway knows ${migrations.length}; run the newer one`,
    );
  }
  for (const [index, sql] of migrations.entries()) {
    if (index < version) continue;
    db.exec(`BEGIN IMMEDIATE; ${sql}; PRAGMA user_version = ${index + 1}; COMMIT;`);
  }
}
