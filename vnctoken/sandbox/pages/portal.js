const $ = (id) => document.getElementById(id);

let rfb = null;
let open = null; // the VM whose console is shown: {id, name}
let attempt = 0; // which console is meant when an answer comes late
let waiting = 0; // the timer of a reconnection

const RECONNECT_SECONDS = [1, 2, 4, 8];

async function ask(what, question = {}) {
  const response = await fetch(what, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  });
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

function failed(error) {
  if (error.status === 401) show({});
  say(error instanceof TypeError ? "The portal does not answer. Is it running?" : error.message);
}

// Who is logged in, if anybody, and his VMs.
function show({ user, vms }) {
  $("login").hidden = Boolean(user);
  $("who").hidden = $("list").hidden = !user;
  if (!user) {
    closeConsole();
    $("name").focus();
    return;
  }
  $("user").textContent = user;
  $("vms").replaceChildren(...vms.map(row));
}

function cell(tag, text, name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = name;
  return element;
}

function row(vm) {
  const tr = document.createElement("tr");
  const name = cell("th", vm.name);
  name.scope = "row";
  const button = cell("button", "Console");
  button.type = "button";
  button.setAttribute("aria-label", `Console of VM ${vm.id}, ${vm.name}`);
  button.addEventListener("click", () => openConsole({ id: vm.id, name: vm.name, from: button }));
  const last = document.createElement("td");
  last.append(button);
  const state = cell("td", vm.state, vm.state === "running" ? "state running" : "state");
  tr.append(cell("td", vm.id), name, state, cell("td", vm.owner, "owner"), last);
  return tr;
}

function openConsole(vm) {
  closeConsole();
  open = vm;
  connect(0);
}

// Every attempt has a token of its own: tokens are short-lived, and a new one may have replaced the last.
async function connect(tried) {
  const mine = ++attempt;
  clearTimeout(waiting);
  say("");
  let answer;
  try {
    answer = await ask("console", { id: open.id });
  } catch (error) {
    if (mine !== attempt) return;
    if (tried) return lost(`${error.message}`, tried, error.status === 502);
    closeConsole();
    failed(error.status === 401 ? error : new Error(`VM ${open.id}: ${error.message}`));
    return;
  }
  if (mine !== attempt) return;
  $("title").textContent = open.name ? `${open.name} (VM ${open.id})` : `VM ${open.id}`;
  $("console").hidden = false;
  $("console").className = "";
  $("screen").replaceChildren();
  $("screen").className = "";
  if (!answer.novnc) {
    $("screen").className = "empty";
    $("screen").textContent =
      "noVNC is missing: install npm, or Debian's package novnc, and start the demo again.\n\n" +
      `The token is issued all the same. It opens ${answer.target} at\n${answer.websocket}`;
    $("status").textContent = "No viewer";
    return;
  }
  $("status").textContent = "Connecting…";
  const { default: RFB } = await import("./novnc/core/rfb.js");
  if (mine !== attempt) return;
  // Without one noVNC asks, should the screen want it.
  const credentials = answer.password ? { password: answer.password } : {};
  watch(new RFB($("screen"), answer.websocket, { credentials }), tried);
}

function watch(viewer, tried) {
  let connected = false;
  let refused = "";
  rfb = viewer;
  rfb.scaleViewport = true;
  rfb.background = "transparent";
  rfb.showDotCursor = true;
  rfb.addEventListener("connect", () => {
    connected = true;
    $("status").textContent = "Connected";
    $("screen").scrollIntoView({ block: "nearest" });
    viewer.focus();
  });
  rfb.addEventListener("credentialsrequired", () => {
    $("credentials").hidden = false;
    $("vnc-password").focus();
  });
  rfb.addEventListener("securityfailure", (event) => {
    refused = `The screen refuses the password. ${event.detail.reason || ""}`;
  });
  rfb.addEventListener("disconnect", () => {
    if (viewer !== rfb) return; // closed by us
    rfb = null;
    $("credentials").hidden = true;
    if (refused) lost(refused, 0, false);
    else if (connected) lost("The console was closed, or its connection broke.", 0, true);
    else lost("The console cannot be reached: its token is not valid any more, or the screen does not answer.", tried, tried > 0);
  });
}

function lost(text, tried, tryAgain) {
  $("console").className = "lost";
  const seconds = tryAgain ? RECONNECT_SECONDS[tried] : undefined;
  $("status").textContent = "";
  say(seconds ? `${text} Trying again in ${seconds} s with a new token…` : text);
  if (seconds) waiting = setTimeout(() => connect(tried + 1), seconds * 1000);
  else $("again").focus();
}

function closeConsole() {
  attempt++;
  clearTimeout(waiting);
  const viewer = rfb;
  rfb = null;
  viewer?.disconnect();
  $("console").hidden = $("credentials").hidden = true;
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    show(await ask("login", { user: $("name").value, password: $("password").value }));
    say("");
    $("password").value = "";
    $("vms").querySelector("button")?.focus();
  } catch (error) {
    failed(error);
  }
});

$("logout").addEventListener("click", async () => {
  await ask("logout").catch(failed);
  say("");
  show({});
});

$("other").addEventListener("submit", (event) => {
  event.preventDefault();
  openConsole({ id: Number($("number").value), from: $("number") });
});

$("credentials").addEventListener("submit", (event) => {
  event.preventDefault();
  $("credentials").hidden = true;
  rfb?.sendCredentials({ password: $("vnc-password").value });
  $("vnc-password").value = "";
});

$("again").addEventListener("click", () => connect(0));
$("ctrl-alt-del").addEventListener("click", () => rfb?.sendCtrlAltDel());
$("fullscreen").addEventListener("click", () => $("screen").requestFullscreen().then(() => rfb?.focus()));
$("close").addEventListener("click", () => {
  say("");
  closeConsole();
  open?.from.focus();
});

// Before noVNC sees it: all other keys are the screen's.
window.addEventListener(
  "keydown",
  (event) => {
    if (event.key !== "F8" || !$("screen").contains(document.activeElement)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    $("close").focus();
  },
  true,
);

ask("vms").then(show, (error) => {
  show({});
  failed(error);
});
