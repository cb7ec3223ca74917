// The page: puts worklist, films and report together, and takes decisions.

import { ask, takeToken, tell } from "./api.js";
import { askReason, showExport, showKeys } from "./dialogs.js";
import { Report } from "./report.js";
import { Viewer } from "./viewer.js";
import { Worklist } from "./worklist.js";

const AHEAD = 4; // studies that are drafted ahead
const POLL = 400; // milliseconds between two looks for a draft
const SAVE = 600; // milliseconds without a change after which a text is kept
const NARROW = 1100; // width of a window, in pixels, up to which the list is a drawer
const IDLE = 60_000; // milliseconds without a key or a move after which a study is not in use

const element = (id) => document.getElementById(id);
const state = { number: -1, study: null, seconds: 0, overview: null };
let lastUse = performance.now();

function say(text, bad = false) {
  element("status").textContent = text;
  element("status").classList.toggle("bad", bad);
}

const failed = (error) => say(error.message, true);

const viewer = new Viewer({ failed });
const worklist = new Worklist({
  list: element("rows"),
  inner: element("rows-inner"),
  search: element("search"),
  filter: element("filter"),
  found: element("found"),
  opened: (number, pressed) => {
    open(number);
    if (pressed && innerWidth <= NARROW) toggleList(); // there the list lies over the films
  },
});
const report = new Report({
  text: element("text"),
  shade: element("shade"),
  editor: element("editor"),
  chips: element("chips"),
  sentence: element("sentence"),
  restore: element("restore"),
  edited: () => {
    state.edited = true;
    showDecision();
    clearTimeout(state.saving);
    state.saving = setTimeout(save, SAVE);
  },
  failed,
});

function save(keepalive = false) {
  clearTimeout(state.saving);
  if (!state.edited || !state.study?.draft) return;
  state.edited = false;
  const value = { text: element("text").value, seconds: state.seconds };
  tell(`/api/studies/${state.number}/working`, value, keepalive).catch(failed);
}

async function open(number) {
  if (number === undefined || number === state.number) return;
  save();
  state.number = number;
  worklist.select(number);
  const next = worklist.coming(AHEAD);
  let study;
  try {
    study = await ask(`/api/studies/${number}?next=${next.join(",")}`);
  } catch (error) {
    failed(error);
    return;
  }
  if (number !== state.number) return;
  Object.assign(state, { study, edited: false });
  state.seconds = study.working?.seconds ?? study.decision?.seconds ?? 0;
  lastUse = performance.now();
  element("study-id").textContent = study.id;
  element("indication").textContent = study.indication ? `Indication: ${study.indication}` : "";
  element("prior").hidden = !study.prior?.report;
  element("prior").lastElementChild.textContent = study.prior?.report ?? "";
  element("nearest").open = false;
  element("scroll").scrollTop = 0;
  viewer.show(number, study.films);
  showDraft(study.draft);
  if (!study.draft) wait(number);
  fetchAhead(number, next[0]);
}

function showDraft(draft) {
  state.study.draft = draft;
  element("banner").textContent = draft?.banner ?? state.overview.banner;
  const { working, decision } = state.study;
  report.show(draft, draft && (working?.text ?? (decision?.final || undefined)));
  if (draft?.error) say(draft.error, true);
  showDecision();
}

async function wait(number) {
  while (number === state.number) {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    try {
      const { draft } = await ask(`/api/studies/${number}/draft`);
      if (draft && number === state.number) {
        showDraft(draft);
        return;
      }
    } catch (error) {
      failed(error);
      return;
    }
  }
}

// Films of the next study, once those of this one are there.
async function fetchAhead(number, next) {
  await viewer.ahead(number, state.study.films);
  if (next === undefined || number !== state.number) return;
  const count = state.overview.studies[next].views.length;
  await viewer.ahead(next, Array(count).fill(0));
}

function showDecision() {
  const { decision, draft } = state.study ?? {};
  const words = { accepted: "Accepted", corrected: "Corrected", rejected: `Rejected: ${decision?.reason}` };
  element("decision").textContent = decision ? words[decision.decision] : "";
  element("decision").className = decision?.decision ?? "";
  const usable = Boolean(draft) && !draft.error;
  element("accept").textContent = usable && !report.unchanged ? "Save corrected" : "Accept";
  element("accept").disabled = !usable;
  element("reject").disabled = !usable;
}

async function decide(text, reason) {
  const { number, study } = state;
  const seconds = Math.round(state.seconds * 10) / 10;
  clearTimeout(state.saving);
  state.edited = false;
  try {
    study.decision = await tell(`/api/studies/${number}/decision`, { text, reason, seconds });
  } catch (error) {
    state.edited = true;
    failed(error);
    return;
  }
  study.working = null;
  worklist.setStatus(number, study.decision.decision);
  showProgress();
  say(`${study.id} ${study.decision.decision}.`);
  showDecision();
  const [next] = worklist.coming(1);
  if (next !== undefined) open(next);
  else say(`${study.id} ${study.decision.decision}. Nothing unread is left in this list.`);
}

function accept() {
  if (!element("accept").disabled) decide(element("text").value, "");
}

async function reject() {
  if (element("reject").disabled) return;
  const number = state.number;
  const reason = await askReason();
  if (reason && number === state.number) decide(null, reason);
}

function showProgress() {
  const read = state.overview.studies.filter((one) => one.status !== "unread").length;
  element("progress").textContent = `${read} of ${state.overview.studies.length} read, by ${state.overview.reader}`;
}

async function showNearest() {
  const place = element("nearest").lastElementChild;
  if (!element("nearest").open) return;
  const number = state.number;
  place.textContent = "Looking …";
  try {
    const { nearest } = await ask(`/api/studies/${number}/nearest`);
    if (number !== state.number) return;
    const texts = nearest.flatMap(({ similarity, text }) => {
      const [about, body] = [document.createElement("p"), document.createElement("p")];
      about.className = "similarity";
      about.textContent = `Cosine of the films' features ${similarity.toFixed(2)}`;
      body.textContent = text;
      return [about, body];
    });
    place.replaceChildren(...texts);
  } catch (error) {
    place.textContent = error.message;
  }
}

function toggleList() {
  const shown = !document.body.classList.toggle("no-list");
  element("toggle-list").setAttribute("aria-expanded", String(shown));
  if (shown) worklist.reveal();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  element("toggle-theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const toggleTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

const KEYS = [
  ["j, k", "next and previous study", { j: () => open(worklist.beside(1)), k: () => open(worklist.beside(-1)) }],
  ["n", "next unread study", { n: () => open(worklist.coming(1)[0]) }],
  ["a", "accept the text as it stands", { a: accept }],
  ["r", "reject, with a reason", { r: reject }],
  ["e", "edit the text; Esc leaves it, Ctrl+Enter accepts it", { e: () => element("text").focus() }],
  ["1 2 3 …", "choose a film; arrows: window, Shift+arrows: move", {}],
  ["m", "this film alone, and back", { m: () => viewer.toggleAlone() }],
  ["+, −", "zoom", { "+": () => viewer.active?.zoom(1.25), "=": () => viewer.active?.zoom(1.25), "-": () => viewer.active?.zoom(0.8) }],
  ["p", "hide or show the prior", { p: () => viewer.togglePrior() }],
  ["i", "invert", { i: () => viewer.active?.invert() }],
  ["0", "reset the film", { 0: () => viewer.reset() }],
  ["h", "attention of the model", { h: () => viewer.toggleAttention() }],
  ["x", "export", { x: () => showExport(state.number, state.overview.studies, state.overview.results) }],
  ["l", "show or hide the worklist", { l: toggleList }],
  ["t", "light or dark", { t: toggleTheme }],
  ["/", "search", { "/": () => (document.body.classList.contains("no-list") && toggleList(), element("search").focus()) }],
  ["?", "these keys", { "?": () => showKeys(KEYS) }],
  ["Mouse", "drag: window and level; wheel: zoom; right button or Shift: move; double click: alone", {}],
  ["Touch", "one finger: window and level, or Move; two fingers: zoom and move", {}],
];
const ACTIONS = Object.assign({}, ...KEYS.map(([, , actions]) => actions));

function pressed(event) {
  lastUse = performance.now();
  if (document.querySelector("dialog[open]")) return;
  const inText = event.target.matches("textarea, select, input:not([type=range])");
  if (event.target === element("text") && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    accept();
  } else if (inText && event.key === "Escape") {
    event.target.blur();
  } else if (!inText && !event.ctrlKey && !event.metaKey && !event.altKey && element("single-keys").checked) {
    const action = /^[1-9]$/.test(event.key) ? () => viewer.choose(Number(event.key) - 1) : ACTIONS[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  }
}

function listen() {
  document.addEventListener("keydown", pressed);
  for (const kind of ["pointerdown", "pointermove", "wheel"]) {
    document.addEventListener(kind, () => (lastUse = performance.now()), { passive: true });
  }
  const clicks = {
    accept,
    reject,
    previous: () => open(worklist.beside(-1)),
    next: () => open(worklist.beside(1)),
    "toggle-list": toggleList,
    "toggle-theme": toggleTheme,
    "open-help": () => showKeys(KEYS),
    "open-export": () => showExport(state.number, state.overview.studies, state.overview.results),
  };
  for (const [id, action] of Object.entries(clicks)) element(id).addEventListener("click", () => action());
  element("nearest").addEventListener("toggle", showNearest);
  element("single-keys").checked = localStorage.getItem("single-keys") !== "no";
  element("single-keys").addEventListener("change", (event) => localStorage.setItem("single-keys", event.target.checked ? "yes" : "no"));
  document.addEventListener("visibilitychange", () => document.hidden && save(true));
  setInterval(() => {
    if (!document.hidden && performance.now() - lastUse < IDLE && state.study) state.seconds += 0.5;
  }, 500);
}

async function start() {
  const light = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  setTheme(localStorage.getItem("theme") ?? light);
  if (innerWidth <= NARROW) toggleList();
  listen();
  if (!takeToken()) {
    say("Open the address that raddraft read printed; it ends with a token.", true);
    return;
  }
  try {
    state.overview = await ask("/api/worklist");
  } catch (error) {
    failed(error);
    return;
  }
  const { studies, banner, attention, nearest } = state.overview;
  element("banner").textContent = banner;
  element("attention").hidden = !attention;
  element("nearest").hidden = !nearest;
  worklist.fill(studies);
  showProgress();
  const first = studies.findIndex((one) => one.status === "unread");
  open(Math.max(0, first));
}

start();
