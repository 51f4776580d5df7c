/** The repositories: adding one, its webhook, starting a build by hand. */
import { api } from "./api.js";
import { go } from "./app.js";
import { h, toast } from "./dom.js";

export function repositoriesPage(main) {
  const list = h("ul", { class: "repositories" });
  const result = h("div", { class: "added", role: "status" });
  const name = h("input", { name: "name", placeholder: "owner/name", required: true, "aria-label": "Name" });
  const cloneUrl = h("input", {
    name: "cloneUrl",
    placeholder: "https://git.example.com/owner/name.git",
    required: true,
    "aria-label": "Clone URL",
  });
  const form = h(
    "form",
    { class: "add" },
    name,
    cloneUrl,
    h("button", { class: "primary", type: "submit" }, "Add repository"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const added = await api("POST", "/api/repositories", { name: name.value, cloneUrl: cloneUrl.value });
      result.replaceChildren(
        h("h2", {}, `${added.name} is added`),
        h("p", {}, "Set this webhook in the forge, with content type application/json:"),
        h(
          "dl",
          {},
          h("dt", {}, "Address"),
          h("dd", {}, h("code", {}, location.origin + added.webhookPath)),
          h("dt", {}, "Secret"),
          h("dd", {}, h("code", {}, added.secret)),
        ),
        h("p", { class: "sub" }, "The secret is shown this once."),
      );
      form.reset();
      await draw();
    } catch (error) {
      toast(error.message);
    }
  });
  main.append(h("div", { class: "page-head" }, h("h1", {}, "Repositories")), form, result, list);

  async function draw() {
    try {
      const { repositories } = await api("GET", "/api/repositories");
      list.replaceChildren(...repositories.map(row));
      if (repositories.length === 0) list.replaceChildren(h("li", { class: "empty" }, "No repositories yet"));
    } catch (error) {
      list.replaceChildren(h("li", { class: "empty" }, `Cannot load the repositories: ${error.message}`));
    }
  }

  function row(repository) {
    return h(
      "li",
      {},
      h(
        "div",
        { class: "what" },
        h(
          "a",
          { class: "title", href: `/?repository=${encodeURIComponent(repository.id)}`, "data-link": true },
          repository.name,
        ),
        h("code", { class: "sub" }, repository.cloneUrl),
      ),
      h("button", { class: "plain", type: "button", onclick: () => start(repository) }, "Run a build"),
    );
  }

  async function start({ id }) {
    const ref = prompt("Branch, tag (refs/tags/…) or other ref to build", "main");
    if (!ref) return;
    try {
      const build = await api("POST", "/api/builds", { repositoryId: id, ref });
      go(build?.id ? `/builds/${build.id}` : "/");
    } catch (error) {
      toast(error.message);
    }
  }

  void draw();
  return () => {};
}
