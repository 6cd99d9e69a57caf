// The conversation: turns, the reply that is being written, and what can be done with both.

import { reply } from "./api.js";
import { Drawing } from "./drawing.js";

const SPEAKERS = { user: "You", assistant: "Model" };
/** Seconds from which on a speed is told: what comes at once has been on its way for longer than it took to arrive. */
const TIMED = 0.1;
/** A reply in fences of three backticks has code in between. */
const FENCE = /^```.*$/m;

/** Shows text, with what stands between fences as code. Never as HTML. */
function show(element, text) {
  const parts = text.split(FENCE).map((part, i) => {
    if (i % 2 === 0) return document.createTextNode(part);
    const code = document.createElement("pre");
    code.tabIndex = 0;
    code.textContent = part.replace(/^\n/, "");
    return code;
  });
  element.replaceChildren(...parts);
}

export class Conversation {
  #find;
  #settings;
  #turns = [];
  #running = null;

  constructor(find, settings) {
    this.#find = find;
    this.#settings = settings;
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    find("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    find("stop").addEventListener("click", () => this.stop());
    find("again").addEventListener("click", () => this.#regenerate());
    find("clear").addEventListener("click", () => this.#clear());
  }

  /** Ends the reply that is being written; what there is of it stays. */
  stop() {
    this.#running?.abort();
  }

  #send() {
    const text = this.#find("prompt").value.trim();
    if (text === "" || this.#running) return;
    this.#find("prompt").value = "";
    this.#add({ role: "user", content: text });
    this.#answer();
  }

  #regenerate() {
    if (this.#running || this.#turns.length === 0) return;
    if (this.#turns.at(-1).role === "assistant") this.#removeLast();
    this.#answer();
  }

  #clear() {
    this.stop();
    this.#turns = [];
    this.#find("turns").replaceChildren();
    this.#find("figures").textContent = "";
    this.#find("problem").textContent = "";
    this.#offer();
    this.#find("prompt").focus();
  }

  #removeLast() {
    this.#turns.pop();
    this.#find("turns").lastElementChild.remove();
  }

  /** Adds a turn, and gives where its text and its thinking go. */
  #add(turn) {
    this.#turns.push(turn);
    const item = document.createElement("li");
    item.className = turn.role;
    const speaker = document.createElement("h3");
    speaker.textContent = SPEAKERS[turn.role];
    const thinking = document.createElement("details");
    thinking.className = "thinking";
    thinking.hidden = true;
    const summary = document.createElement("summary");
    summary.textContent = "Thinking";
    const thoughts = document.createElement("div");
    thoughts.className = "text";
    thinking.append(summary, thoughts);
    const text = document.createElement("div");
    text.className = "text";
    show(text, turn.content);
    item.append(speaker, thinking, text);
    this.#find("turns").append(item);
    this.#offer();
    this.#scroll(true);
    return { item, text, thinking, thoughts };
  }

  async #answer() {
    const messages = this.#turns.map(({ role, content }) => ({ role, content }));
    const request = { model: this.#find("model").value, messages: this.#settings.withSystem(messages), ...this.#settings.sampling() };
    const turn = { role: "assistant", content: "" };
    const parts = this.#add(turn);
    parts.item.setAttribute("aria-busy", "true");
    const running = new AbortController();
    this.#running = running;
    this.#offer();
    this.#find("problem").textContent = "";
    const began = performance.now();
    let first = null;
    let thoughts = "";
    let tokens = 0;
    let usage = null;
    const drawing = new Drawing(() => {
      show(parts.text, turn.content);
      parts.thinking.hidden = thoughts === "";
      parts.thoughts.textContent = thoughts;
      this.#figures(began, first, tokens, usage);
      this.#scroll(false);
    });
    try {
      for await (const piece of reply(request, this.#settings.key(), running.signal)) {
        if (piece.text || piece.thinking) {
          first ??= performance.now();
          tokens += 1;
        }
        turn.content += piece.text;
        thoughts += piece.thinking;
        usage ??= piece.usage;
        tokens = usage?.completion_tokens ?? tokens;
        drawing.ask();
      }
    } catch (problem) {
      if (!running.signal.aborted) this.#find("problem").textContent = problem.message;
    }
    drawing.now();
    parts.item.removeAttribute("aria-busy");
    const kept = this.#turns.at(-1) === turn;
    if (kept && turn.content === "" && thoughts === "") this.#removeLast();
    this.#running = null;
    this.#offer();
    this.#find("prompt").focus();
  }

  #figures(began, first, tokens, usage) {
    if (first === null) return;
    const wait = ((first - began) / 1000).toFixed(2);
    const seconds = (performance.now() - first) / 1000;
    const speed = seconds >= TIMED ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    const cached = usage?.prompt_tokens_details?.cached_tokens;
    const known = cached ? `${cached} prompt tokens known` : "";
    this.#find("figures").textContent = [`first after ${wait} s`, speed, known].filter(Boolean).join(" · ");
  }

  /** Enables what can be done now. */
  #offer() {
    const busy = this.#running !== null;
    this.#find("send").hidden = busy;
    this.#find("stop").hidden = !busy;
    this.#find("again").disabled = busy || this.#turns.length === 0;
    this.#find("clear").disabled = this.#turns.length === 0;
  }

  /** Keeps the end in sight, unless its reader has scrolled up. */
  #scroll(always) {
    const area = this.#find("conversation");
    const near = area.scrollHeight - area.scrollTop - area.clientHeight < 120;
    if (always || near) area.scrollTop = area.scrollHeight;
  }
}
