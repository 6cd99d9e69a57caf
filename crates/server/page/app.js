// The page: wires the conversation, the settings and the engine's view together.

import { listModels } from "./api.js";
import { Conversation } from "./conversation.js";
import { watchEngine } from "./engine.js";
import { Settings } from "./settings.js";

const find = (id) => document.getElementById(id);
const settings = new Settings(find("settings"));
const conversation = new Conversation(find, settings);

function showPanel(shown) {
  document.body.classList.toggle("narrow", !shown);
  find("toggle-panel").setAttribute("aria-expanded", String(shown));
  localStorage.setItem("tessera.panel", shown ? "shown" : "hidden");
}

find("toggle-panel").addEventListener("click", () => showPanel(document.body.classList.contains("narrow")));
showPanel(localStorage.getItem("tessera.panel") !== "hidden");

async function fillModels() {
  const select = find("model");
  try {
    const models = await listModels(settings.key());
    const kept = select.value || localStorage.getItem("tessera.model");
    select.replaceChildren(...models.map((name) => new Option(name, name, false, name === kept)));
    select.disabled = models.length === 0;
    find("connection").textContent = models.length === 0 ? "no model is loaded" : "ready";
    find("problem").textContent = "";
  } catch (problem) {
    find("connection").textContent = "not connected";
    find("problem").textContent = problem.message;
  }
}

find("model").addEventListener("change", (event) => localStorage.setItem("tessera.model", event.target.value));
settings.onKey(() => {
  fillModels();
  watchEngine(find, settings.key());
});
fillModels();
watchEngine(find, settings.key());
find("prompt").focus();
window.tessera = { conversation };
