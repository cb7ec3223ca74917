// The page: puts worklist, films and report together, and takes decisions.

import { ask, NO_ANSWER, takeToken, tell } from "./api.js";
import { askReason, showExport, showKeys } from "./dialogs.js";
import { Report } from "./report.js";
import { Viewer } from "./viewer.js";
import { Worklist } from "./worklist.js";

const AHEAD = 4; // studies that are drafted ahead
const POLL = 400; // milliseconds between two looks for a draft
const SAVE = 600; // milliseconds without a change after which a text is kept
const RETRY = 3000; // milliseconds after which a text that was not taken is sent again
const NARROW = 1100; // width of a window, in pixels, up to which the list is a drawer
const IDLE = 60_000; // milliseconds without a key or a move after which a study is not in use

const element = (id) => document.getElementById(id);
const state = {
  wanted: -1, // number of the study that was asked for last
  opening: null, // AbortController of its requests
  study: null, // what the server tells of the study that is shown, with its number; null while none is
  edited: false, // whether its text was changed and not kept since
  seconds: 0, // that it was in use
  kept: 0, // as kept last
  unsaved: new Map(), // number -> {text, seconds} that the server has not taken yet
  deciding: false,
  saving: 0, // timer of the next save
  flushing: null, // promise of the texts that are being sent
  retry: null, // timer of the next try, after one that failed
  overview: null,
};
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
    const { number } = state.study;
    if (!state.overview.studies[number].edited) worklist.mark(number, { edited: true });
    showDecision();
    clearTimeout(state.saving);
    state.saving = setTimeout(save, SAVE);
  },
  failed,
});

// Hand what was made of the open study to the server.
function save() {
  clearTimeout(state.saving);
  const { study, seconds } = state;
  if (study?.draft && (state.edited || seconds !== state.kept)) {
    const text = state.edited ? element("text").value : (study.working?.text ?? null);
    study.working = { text, seconds };
    state.unsaved.set(study.number, study.working);
    Object.assign(state, { edited: false, kept: seconds });
  }
  flush();
}

// Send what is not taken yet, one text after the other, so that none overtakes a later one.
async function flush() {
  if (state.flushing || state.deciding) return;
  clearTimeout(state.retry);
  state.retry = null;
  state.flushing = sendAll();
  await state.flushing;
  state.flushing = null;
}

async function sendAll() {
  try {
    while (state.unsaved.size && !state.deciding) {
      const [[number, working]] = state.unsaved;
      await send(number, working);
    }
  } catch (error) {
    failed(error);
    state.retry = setTimeout(flush, RETRY);
  }
}

async function send(number, working, keepalive = false) {
  await tell(`/api/studies/${number}/working`, working, keepalive);
  if (state.unsaved.get(number) === working) state.unsaved.delete(number);
}

// The tab is hidden, perhaps for good: what is under way may not arrive.
function saveHidden() {
  save();
  if (state.deciding) return;
  for (const [number, working] of state.unsaved) send(number, working, true).catch(() => {}); // `flush` tells
}

// A study is shown as a whole, when the server has told of it; until then, none is.
async function open(number) {
  if (number === undefined || (number === state.wanted && !state.study?.draft?.error)) return;
  save();
  state.opening?.abort();
  const opening = new AbortController();
  Object.assign(state, { wanted: number, opening, study: null, edited: false });
  worklist.select(number);
  clear();
  const next = worklist.coming(AHEAD);
  let study;
  try {
    study = await ask(`/api/studies/${number}?next=${next.join(",")}`, opening.signal);
  } catch (error) {
    if (opening !== state.opening) return;
    state.wanted = -1; // to be asked for again
    failed(error);
    return;
  }
  if (opening !== state.opening) return;
  study.number = number;
  study.working = state.unsaved.get(number) ?? study.working;
  const seconds = study.working?.seconds ?? study.decision?.seconds ?? 0;
  Object.assign(state, { study, seconds, kept: seconds });
  lastUse = performance.now();
  if (element("status").classList.contains("bad") && !state.retry) say("");
  element("study-id").textContent = study.id;
  element("indication").textContent = study.indication ? `Indication: ${study.indication}` : "";
  element("prior").hidden = !study.prior?.report;
  element("prior").lastElementChild.textContent = study.prior?.report ?? "";
  element("nearest").hidden = !state.overview.nearest;
  element("scroll").scrollTop = 0;
  viewer.show(number, study.films);
  showDraft(study.draft);
  if (!study.draft) wait(study, opening);
  fetchAhead(study, next[0]);
}

function clear() {
  for (const id of ["study-id", "indication"]) element(id).textContent = "";
  for (const id of ["prior", "nearest"]) element(id).hidden = true;
  element("nearest").open = false;
  viewer.show(state.wanted, []);
  report.clear();
  showDecision();
}

function showDraft(draft) {
  state.study.draft = draft;
  element("banner").textContent = draft?.banner ?? state.overview.banner;
  const { working, decision } = state.study;
  report.show(draft, draft && (working?.text ?? (decision?.final || undefined)));
  if (draft?.error) say(draft.error, true);
  showDecision();
}

async function wait(study, opening) {
  while (study === state.study && !study.draft) {
    await new Promise((resolve) => setTimeout(resolve, POLL));
    if (study !== state.study) return;
    try {
      const { draft } = await ask(`/api/studies/${study.number}/draft`, opening.signal);
      if (draft && study === state.study) showDraft(draft);
    } catch (error) {
      if (study === state.study) failed(error); // and looks again
    }
  }
}

// Films of the next study, once those of this one are there.
async function fetchAhead(study, next) {
  await viewer.ahead(study.number, study.films.length);
  if (next === undefined || study !== state.study) return;
  await viewer.ahead(next, state.overview.studies[next].views.length);
}

function showDecision() {
  const { decision, draft } = state.study ?? {};
  const words = { accepted: "Accepted", corrected: "Corrected", rejected: `Rejected: ${decision?.reason}` };
  element("decision").textContent = decision ? words[decision.decision] : "";
  element("decision").className = decision?.decision ?? "";
  const nothing = draft?.error && !element("text").value.trim();
  element("accept").textContent = draft && !report.unchanged ? "Save corrected" : "Accept";
  element("accept").disabled = !draft || nothing || state.deciding;
  element("reject").disabled = !draft || state.deciding;
}

async function decide(text, reason) {
  const { study } = state;
  const seconds = Math.round(state.seconds * 10) / 10;
  const decided = { study_id: study.id, draft: study.draft.digest, text, reason, seconds };
  let taken = false;
  state.deciding = true;
  clearTimeout(state.saving);
  report.lock(true);
  showDecision();
  try {
    await state.flushing; // a text that arrives later would stand beside the decision
    study.decision = await tell(`/api/studies/${study.number}/decision`, decided);
    taken = true;
  } catch (error) {
    failed(error);
  }
  state.deciding = false;
  if (taken) noteDecision(study);
  if (study === state.study) report.lock(false);
  showDecision();
  if (!taken) save();
  else if (study.number === state.wanted) openNext(study);
  else flush();
}

function noteDecision(study) {
  const { number, decision } = study;
  study.working = null;
  state.unsaved.delete(number);
  if (study === state.study) Object.assign(state, { edited: false, kept: state.seconds });
  worklist.mark(number, { status: decision.decision, edited: false });
  showProgress();
  say(`${study.id} ${decision.decision}.`);
}

function openNext(study) {
  const [next] = worklist.coming(1);
  if (next !== undefined) open(next);
  else say(`${study.id} ${study.decision.decision}. Nothing unread is left in this list.`);
}

function accept() {
  if (!element("accept").disabled) decide(element("text").value, "");
}

async function reject() {
  if (element("reject").disabled) return;
  const { study } = state;
  const reason = await askReason();
  if (reason && study === state.study && !element("reject").disabled) decide(null, reason);
}

function showProgress() {
  const read = state.overview.studies.filter((one) => one.status !== "unread").length;
  element("progress").textContent = `${read} of ${state.overview.studies.length} read, by ${state.overview.reader}`;
}

async function showNearest() {
  const place = element("nearest").lastElementChild;
  const { study } = state;
  if (!element("nearest").open || !study) return;
  place.textContent = "Looking …";
  try {
    const { nearest } = await ask(`/api/studies/${study.number}/nearest`);
    if (study !== state.study) return;
    const texts = nearest.flatMap(({ similarity, text }) => {
      const [about, body] = [document.createElement("p"), document.createElement("p")];
      about.className = "similarity";
      about.textContent = `Cosine of the films' features ${similarity.toFixed(2)}`;
      body.textContent = text;
      return [about, body];
    });
    place.replaceChildren(...texts);
  } catch (error) {
    if (study === state.study) place.textContent = error.message;
  }
}

function openExport() {
  if (state.study) showExport(state.study.number, state.overview.studies, state.overview.results);
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
  ["x", "export", { x: openExport }],
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
  const inText = event.target.matches("textarea, select, input[type=search]");
  if (event.target === element("text") && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.repeat) accept();
  } else if (inText && event.key === "Escape") {
    event.target.blur();
  } else if (!inText && !event.ctrlKey && !event.metaKey && !event.altKey && element("single-keys").checked) {
    const action = /^[1-9]$/.test(event.key) ? () => viewer.choose(Number(event.key) - 1) : ACTIONS[event.key];
    if (!action) return;
    event.preventDefault();
    if (!event.repeat || (action !== accept && action !== reject)) action(); // a held key decides on one study only
  }
}

function listen() {
  document.addEventListener("keydown", pressed);
  for (const kind of ["pointerdown", "pointermove", "wheel"]) {
    document.addEventListener(kind, () => (lastUse = performance.now()), { passive: true });
  }
  const clicks = {
    reject,
    previous: () => open(worklist.beside(-1)),
    next: () => open(worklist.beside(1)),
    "toggle-list": toggleList,
    "toggle-theme": toggleTheme,
    "open-help": () => showKeys(KEYS),
    "open-export": openExport,
  };
  for (const [id, action] of Object.entries(clicks)) element(id).addEventListener("click", () => action());
  // The second click of two would be on the next study.
  element("accept").addEventListener("click", (event) => event.detail < 2 && accept());
  element("nearest").addEventListener("toggle", showNearest);
  element("single-keys").checked = localStorage.getItem("single-keys") !== "no";
  element("single-keys").addEventListener("change", (event) => localStorage.setItem("single-keys", event.target.checked ? "yes" : "no"));
  document.addEventListener("visibilitychange", () => document.hidden && saveHidden());
  document.addEventListener("answered", () => {
    if (element("status").textContent === NO_ANSWER && state.study && !state.retry) say("");
  });
  addEventListener("beforeunload", (event) => state.retry && event.preventDefault());
  setInterval(() => {
    const aside = document.hidden || document.querySelector("#help-dialog[open], #export-dialog[open]");
    if (!aside && performance.now() - lastUse < IDLE && state.study?.draft) state.seconds += 0.5;
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
  const { studies, banner, attention } = state.overview;
  element("banner").textContent = banner;
  element("attention").hidden = !attention;
  worklist.fill(studies);
  showProgress();
  const first = studies.findIndex((one) => one.status === "unread");
  open(Math.max(0, first));
}

start();
