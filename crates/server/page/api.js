// Talks to the server it came from: plain fetch, and streams of server-sent events.

const headers = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** The error that a response tells, as its own words. */
async function problemOf(response) {
  let told = "";
  try {
    told = (await response.json()).error?.message ?? "";
  } catch {
    // Not JSON: the status must do.
  }
  return new Error(told || `the server answered ${response.status} ${response.statusText}`);
}

/** The names of all loaded models. */
export async function listModels(key) {
  const response = await fetch("/v1/models", { headers: headers(key) });
  if (!response.ok) throw await problemOf(response);
  return (await response.json()).data.map((model) => model.id);
}

/** The data of each event of a stream, as text. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r\n", "\n");
    for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length > 0) yield data.join("\n");
    }
  }
}

/** The pieces of a reply: { text, thinking, finish, usage }, until it ends or `signal` aborts it. */
export async function* reply(request, key, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await problemOf(response);
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      thinking: choice?.delta?.reasoning_content ?? "",
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
    };
  }
}

/** The engine's state, again and again, until `signal` aborts it. */
export async function* engineStates(key, signal) {
  const response = await fetch("/v1/engine/events", { headers: headers(key), signal });
  if (!response.ok) throw await problemOf(response);
  for await (const data of eventsOf(response)) yield JSON.parse(data);
}
