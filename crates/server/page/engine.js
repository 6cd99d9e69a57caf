// The live view of the engine: rows in each step over time, and what it holds.

import { engineStates } from "./api.js";

/** Seconds that the chart shows. */
const SHOWN_SECONDS = 60;
/** Seconds before a lost connection is tried again. */
const RETRY_SECONDS = 3;

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const bytes = (count) => `${(count / 2 ** 20).toFixed(0)} MiB`;

let watching = null;

/** Rows in a step, in the mean since the state before. */
class Rows {
  #before = new Map();

  of(model) {
    const { rows, steps } = model.counters;
    const before = this.#before.get(model.name) ?? { rows, steps };
    this.#before.set(model.name, { rows, steps });
    return steps > before.steps ? (rows - before.rows) / (steps - before.steps) : 0;
  }
}

/** Shows the engine's state as it changes, with this key from now on. */
export function watchEngine(find, key) {
  watching?.abort();
  watching = new AbortController();
  watch(find, key, watching.signal);
}

async function watch(find, key, signal) {
  const points = [];
  const rows = new Rows();
  while (!signal.aborted) {
    try {
      for await (const state of engineStates(key, signal)) draw(find, points, rows, state);
    } catch {
      // The server is away or refuses: the connection's own line says so.
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_SECONDS * 1000));
  }
}

function draw(find, points, rowsOf, state) {
  const models = state.models.filter((model) => model.state === "loaded");
  const sum = (part) => models.reduce((total, model) => total + part(model), 0);
  const now = performance.now() / 1000;
  const rows = sum((model) => rowsOf.of(model));
  points.push([now, rows]);
  while (points[0][0] < now - SHOWN_SECONDS) points.shift();
  const highest = Math.max(1, ...points.map(([, count]) => count));
  const place = ([time, count]) => `${(300 - ((now - time) / SHOWN_SECONDS) * 300).toFixed(1)},${(88 - (count / highest) * 84).toFixed(1)}`;
  find("chart-rows").setAttribute("points", points.map(place).join(" "));
  find("chart-highest").textContent = Math.max(...points.map(([, count]) => count)).toFixed(1);
  const facts = [
    ["Rows in a step", rows.toFixed(1)],
    ["Tokens a second", sum((model) => model.tokens_per_second).toFixed(1)],
    ["Running, waiting", `${sum((model) => model.running)}, ${sum((model) => model.waiting)}`],
    ["Cache in use", share(sum((model) => model.cache.held), sum((model) => model.cache.pages))],
    ["Cache kept for reuse", share(sum((model) => model.cache.reusable), sum((model) => model.cache.pages))],
    ["Cache reserved", bytes(sum((model) => model.cache.bytes))],
    ["Drafted, taken", `${sum((model) => model.counters.drafted)}, ${sum((model) => model.counters.accepted)}`],
    ...models.map((model) => ["Device", model.device]),
    ...models.map((model) => ["Kernel of the last step", model.kernel ?? "none yet"]),
  ];
  const list = find("gauges");
  if (list.childElementCount !== 2 * facts.length) {
    list.replaceChildren(...facts.flatMap(() => [document.createElement("dt"), document.createElement("dd")]));
  }
  facts.forEach(([name, value], i) => {
    list.children[2 * i].textContent = name;
    list.children[2 * i + 1].textContent = value;
  });
}

function share(part, all) {
  return all === 0 ? "none" : `${whole.format((100 * part) / all)} %`;
}
