// What a user may choose, kept in the browser. An empty field means the server's default.

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const PREFIX = "tessera.settings.";

export class Settings {
  #form;

  constructor(form) {
    this.#form = form;
    for (const field of this.#fields()) field.value = localStorage.getItem(PREFIX + field.name) ?? "";
    form.addEventListener("input", ({ target }) => localStorage.setItem(PREFIX + target.name, target.value));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => {
      for (const field of this.#fields()) localStorage.removeItem(PREFIX + field.name);
    });
  }

  #fields() {
    return [...this.#form.elements].filter((field) => field.name);
  }

  key() {
    return this.#form.elements.key.value.trim();
  }

  /** Calls back when the API key has changed. */
  onKey(changed) {
    this.#form.elements.key.addEventListener("change", changed);
  }

  /** Messages after the system message, if there is one. */
  withSystem(messages) {
    const content = this.#form.elements.system.value.trim();
    return content === "" ? messages : [{ role: "system", content }, ...messages];
  }

  /** The numbers that are set. */
  sampling() {
    const set = NUMBERS.map((name) => [name, this.#form.elements[name].valueAsNumber]);
    return Object.fromEntries(set.filter(([, value]) => Number.isFinite(value)));
  }
}
