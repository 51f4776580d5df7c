/** Talks to the server; asks for the token when it wants one. */
const dialog = document.getElementById("login");
const error = document.getElementById("login-error");
const field = document.getElementById("token");
let signedIn;

export async function api(method, path, body) {
  const response = await fetch(path, {
    method,
    ...(body !== undefined && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
  });
  if (response.status === 401 && (await signIn())) return api(method, path, body);
  if (response.status === 204) return undefined;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
  return answer;
}

/** Shows the dialog; resolves with whether a session began. Asked twice at once, it shows one. */
export function signIn() {
  signedIn ??= new Promise((resolve) => {
    error.textContent = "";
    field.value = "";
    dialog.showModal();
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  }).finally(() => (signedIn = undefined));
  return signedIn;
}

document.getElementById("login-cancel").addEventListener("click", () => dialog.close(""));
dialog.addEventListener("cancel", () => (dialog.returnValue = ""));
dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  void submit();
});

async function submit() {
  const response = await fetch("/login", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token: field.value.trim() }),
  });
  if (response.ok) return dialog.close("ok");
  error.textContent = (await response.json().catch(() => ({}))).error ?? "That did not work";
}
