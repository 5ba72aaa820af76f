const $ = (id) => document.getElementById(id);
// Of the last answer: the tokens of its prompt, and of itself. `off` has the heads that are off.
const state = { facts: null, messages: [], prompt: [], answer: [], off: [], running: null };

state.map = new AttentionMap($("map"), (text) => say("attention-hint")(text));

// --- the server ---

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = "Bearer " + key;
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(path, { ...options, headers, signal });
  if (response.status === 401) $("key-field").hidden = false;
  if (!response.ok) {
    const text = await response.text();
    let message = `${response.status} ${response.statusText}`;
    try { message = JSON.parse(text).error.message; } catch { /* not JSON */ }
    throw new Error(message);
  }
  return response;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const data = JSON.parse(part.slice(6));
      if (data.error) throw new Error(data.error.message);
      yield data;
    }
  }
}

function sampling() {
  const found = {};
  for (const name of ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"]) {
    if ($(name).value !== "") found[name] = Number($(name).value);
  }
  return found;
}

// --- tokens: buttons in a text; one of them is in the order of Tab, arrow keys go to the others ---

function tokenButton(token, group) {
  const label = token.piece;
  // Not a <button>: its text would not flow over the end of a line.
  const node = make("span", { className: "token", textContent: label });
  node.setAttribute("role", "button");
  if (label === "") { node.classList.add("empty"); node.setAttribute("aria-label", "a part of a character"); }
  node.setAttribute("aria-pressed", "false");
  node.tabIndex = group.childElementCount > 1 ? -1 : 0;
  node.addEventListener("click", () => showAlternatives(node, token));
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); node.click(); }
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && node[step];
    if (next && next.classList.contains("token")) {
      event.preventDefault();
      node.tabIndex = -1; next.tabIndex = 0;
      next.focus(); next.click();
    }
  });
  return node;
}

function showAlternatives(node, token) {
  for (const other of document.querySelectorAll('.token[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
  node.setAttribute("aria-pressed", "true");
  const compared = $("sides").contains(node);
  if (!compared) select("alternatives");
  $(compared ? "compare-alternatives" : "alternatives-hint").textContent = `In place of ${JSON.stringify(token.token)}:`;
  $(compared ? "compare-bars" : "bars").replaceChildren(...token.top_logprobs.map((each) => {
    const p = Math.exp(each.logprob);
    const bar = make("i");
    bar.style.width = `${100 * p}%`;
    const row = make("li", {}, make("code", { textContent: JSON.stringify(each.token).slice(1, -1) }),
      make("span", { textContent: percent(p) }), bar);
    if (each.token === token.token) row.style.fontWeight = "bold";
    return row;
  }));
}

// --- the conversation ---

function turn(role, text) {
  const node = make("p", { className: "turn" }, make("b", { textContent: role }));
  if (text) node.append(text);
  $("log").append(node);
  $("log").scrollTop = $("log").scrollHeight;
  return node;
}

async function send() {
  const text = $("ask").value;
  const chat = $("mode").value === "chat";
  if (state.running || (chat && !text.trim())) return;
  const controller = state.running = new AbortController();
  $("send").disabled = true; $("stop").disabled = false; $("ask").value = "";
  status("");
  turn(chat ? "user" : "text", text);
  if (chat) state.messages.push({ role: "user", content: text });
  const node = turn(chat ? "assistant" : "continued");
  const common = { ...sampling(), stream: true, return_token_ids: true };
  const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
  let answer = "", read = [], made = [];
  try {
    const response = chat
      ? await call("v1/chat/completions", { ...common, messages: [...system, ...state.messages], logprobs: true, top_logprobs: 10 }, controller.signal)
      : await call("v1/completions", { ...common, prompt: text, logprobs: 10 }, controller.signal);
    for await (const event of events(response)) {
      if (event.prompt_token_ids) read = event.prompt_token_ids;
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.prompt_token_ids) read = choice.prompt_token_ids;
      const piece = chat ? choice.delta.content || "" : choice.text;
      answer += piece;
      const found = chat ? chatTokens(choice, piece) : textTokens(choice, piece);
      if (!found.length && piece) node.append(piece);
      for (const token of found) { made.push(token.id); node.append(tokenButton(token, node)); }
      state.prompt = read; state.answer = made;
      $("log").scrollTop = $("log").scrollHeight;
    }
  } catch (error) {
    if (error.name === "AbortError") status("stopped");
    else { status(error.message, true); if (chat && !answer) state.messages.pop(); }
  }
  if (chat && answer) state.messages.push({ role: "assistant", content: answer });
  state.running = null;
  $("send").disabled = false; $("stop").disabled = true;
  $("ask").focus();
}

function chatTokens(choice, piece) {
  const rows = choice.logprobs ? choice.logprobs.content : [];
  return rows.map((row, i) => ({ ...row, id: choice.token_ids[i], piece: i + 1 === rows.length ? piece : "" }));
}

function textTokens(choice, piece) {
  const found = choice.logprobs;
  return found.tokens.map((token, i) => ({
    token, id: choice.token_ids[i], piece: i + 1 === found.tokens.length ? piece : "",
    top_logprobs: Object.entries(found.top_logprobs[i]).map(([name, logprob]) => ({ token: name, logprob })),
  }));
}

function status(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", bad);
}

// --- looking inside ---

function lastText() {
  const tokens = [...state.prompt, ...state.answer].slice(-256);
  if (!tokens.length) throw new Error("Send something first.");
  return tokens;
}

async function looking(hint, work) {
  const node = $(hint);
  node.classList.remove("error"); node.textContent = "computing ...";
  try { node.textContent = (await work()) || ""; }
  catch (error) { node.textContent = error.message; node.classList.add("error"); }
}

const say = (id) => (text) => { $(id).textContent = text; };

$("run-lens").addEventListener("click", () => looking("lens-hint", async () => {
  const found = await (await call("look/lens", { tokens: lastText() })).json();
  $("lens-table").replaceChildren(lensTable(found, say("lens-hint")));
  $("lens-table").scrollLeft = $("lens-table").scrollWidth;
  return "Point at a cell, or go there with Tab and the arrow keys.";
}));

$("run-attention").addEventListener("click", () => looking("attention-hint", async () => {
  const body = { tokens: lastText(), layer: Number($("layer").value), head: Number($("head").value) };
  state.map.show(await (await call("look/attention", body)).json());
  return "Point at the map, or go there with Tab and the arrow keys.";
}));

// --- heads that are off ---

function showOff() {
  $("off-list").replaceChildren(...state.off.map(([layer, head], i) => {
    const node = make("button", { type: "button", textContent: `block ${layer}, head ${head} ×` });
    node.setAttribute("aria-label", `switch block ${layer}, head ${head} on again`);
    node.addEventListener("click", () => { state.off.splice(i, 1); showOff(); });
    return node;
  }));
}

$("off-add").addEventListener("click", () => {
  const one = [Number($("off-layer").value), Number($("off-head").value)];
  if (!state.off.some((each) => `${each}` === `${one}`)) state.off.push(one);
  showOff();
});

$("run-compare").addEventListener("click", () => looking("compare-hint", async () => {
  if (!state.prompt.length) throw new Error("Send something first.");
  if (!state.off.length) throw new Error("Switch off a head first.");
  const seed = $("seed").value === "" ? 1 + Math.floor(Math.random() * 1e9) : Number($("seed").value);
  const body = { ...sampling(), seed, tokens: state.prompt };
  const [plain, edited] = await Promise.all([[], state.off].map(async (off) => (await call("look/generate", { ...body, off })).json()));
  const same = plain.tokens.findIndex((token, i) => !edited.tokens[i] || edited.tokens[i].id !== token.id);
  $("sides").replaceChildren(...[["as it is", plain], ["without these heads", edited]].map(([title, found]) => {
    const node = make("div", {}, make("b", { textContent: title }), make("br"));
    found.tokens.forEach((token, i) => {
      const button = tokenButton(token, node);
      if (same >= 0 && i >= same) button.classList.add("other");
      node.append(button);
    });
    return node;
  }));
  $("compare-alternatives").textContent = ""; $("compare-bars").replaceChildren();
  return same < 0 ? "Both answers are the same." : `The answers differ from token ${same + 1} on.`;
}));

// --- tabs and the rest ---

const tabs = [...document.querySelectorAll('[role="tab"]')];
function select(name) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.click(); next.focus();
  });
});

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => state.running && state.running.abort());
$("clear").addEventListener("click", () => {
  if (state.running) state.running.abort();
  state.messages = []; state.prompt = []; state.answer = [];
  $("log").replaceChildren(); $("bars").replaceChildren();
  status("");
});
$("mode").addEventListener("change", () => {
  const chat = $("mode").value === "chat";
  $("send").textContent = chat ? "Send" : "Continue";
  $("ask-label").textContent = chat ? "Message (Enter sends, Shift+Enter begins a line)" : "Text to continue";
});
$("key-field").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  begin();
});

async function begin() {
  try {
    const facts = state.facts = await (await call("look/facts")).json();
    $("key-field").hidden = true;
    status("");
    $("name").textContent = facts.name;
    const rows = {
      architecture: facts.architecture, blocks: facts.layers,
      heads: facts.heads === facts.kv_heads ? facts.heads : `${facts.heads} (${facts.kv_heads} of keys)`,
      width: facts.dim, context: facts.context.toLocaleString(), vocabulary: facts.vocabulary.toLocaleString(),
      weights: `${(facts.bytes / 1e6).toFixed(1)} MB, ${facts.formats.join(", ")}`,
    };
    $("facts").replaceChildren(...Object.entries(rows).map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
    for (const id of ["layer", "off-layer"]) $(id).max = facts.layers - 1;
    for (const id of ["head", "off-head"]) $(id).max = facts.heads - 1;
    $("mode").value = facts.chats ? "chat" : "continue";
    $("mode").dispatchEvent(new Event("change"));
  } catch (error) { status(error.message, true); }
}
begin();
