// The report: a text to edit, over sentences shaded by the model's confidence, with observations that light theirs.

import { tell } from "./api.js";

const VALUES = { 1: ["present", "+"], 0: ["absent", "−"], "-1": ["uncertain", "?"] };
const WAIT = 350; // milliseconds without a change after which observations are looked up

export class Report {
  // edited() is called after each change by the reader, failed(error) where the server does not answer.
  constructor({ text, shade, editor, chips, sentence, restore, edited, failed }) {
    Object.assign(this, { text, shade, editor, chips, sentence, restore, edited, failed, lit: null, draft: null });
    this.spans = [];
    text.addEventListener("input", () => {
      this.#changed();
      this.edited();
    });
    for (const kind of ["keyup", "click", "focus"]) text.addEventListener(kind, () => this.#describe());
    text.addEventListener("blur", () => this.#describe());
    restore.addEventListener("click", () => {
      this.setText(this.draft.text);
      this.edited();
      this.text.focus();
    });
  }

  // draft: as the server tells it; null while it is not made.
  show(draft, text) {
    this.draft = draft;
    this.lit = null;
    this.version = (this.version ?? 0) + 1;
    this.editor.setAttribute("aria-busy", String(!draft));
    this.lock(!draft); // not disabled, which would take the cursor out of it
    this.text.placeholder = draft ? (draft.error ?? "") : "The draft is being made …";
    this.confidence = new Map();
    (draft?.sentences ?? []).forEach((one) => this.confidence.set(one.sentence, one));
    this.spans = draft?.spans ?? [];
    this.observations = draft?.observations ?? {};
    this.#drawChips();
    this.setText(text ?? draft?.text ?? "");
  }

  // No study is open.
  clear() {
    this.show(null);
    this.text.placeholder = "";
  }

  lock(locked) {
    this.text.readOnly = locked;
  }

  setText(text) {
    this.text.value = text;
    this.#changed(!this.unchanged);
  }

  get unchanged() {
    return this.draft && words(this.text.value) === words(this.draft.text);
  }

  #changed(ask = true) {
    this.restore.hidden = !this.draft || this.unchanged;
    if (this.draft && !ask) {
      this.spans = this.draft.spans;
      this.observations = this.draft.observations;
      this.#drawChips();
    }
    this.#drawShade();
    this.#describe();
    clearTimeout(this.timer);
    if (this.draft && ask) this.timer = setTimeout(() => this.#label(), WAIT);
  }

  async #label() {
    const [version, text] = [this.version, this.text.value];
    try {
      const found = await tell("/api/labels", { text });
      if (version !== this.version || text !== this.text.value) return;
      Object.assign(this, { spans: found.spans, observations: found.observations });
      this.#drawChips();
      this.#drawShade();
      this.#describe();
    } catch (error) {
      this.failed(error);
    }
  }

  // [start, end, span] of the sentences that are in the text as it stands now.
  #places() {
    const places = [];
    let from = 0;
    for (const span of this.spans) {
      const start = this.text.value.indexOf(span.text, from);
      if (start >= 0) {
        from = start + span.text.length;
        places.push([start, from, span]);
      }
    }
    return places;
  }

  #drawShade() {
    const value = this.text.value;
    const parts = [];
    let from = 0;
    for (const [start, end, span] of this.#places()) {
      parts.push(value.slice(from, start));
      const mark = document.createElement("mark");
      mark.textContent = value.slice(start, end);
      const sure = sureness(this.confidence.get(span.text));
      if (sure !== null) mark.style.setProperty("--share", (1 - sure).toFixed(3));
      mark.classList.toggle("own", !this.draft.spans.some((one) => one.text === span.text));
      mark.classList.toggle("lit", this.lit !== null && this.lit in span.observations);
      parts.push(mark);
      from = end;
    }
    this.shade.replaceChildren(...parts, `${value.slice(from)}\n`);
  }

  #drawChips() {
    const names = Object.keys(this.observations);
    names.sort((a, b) => rank(this.observations[a]) - rank(this.observations[b]));
    if (this.lit && !names.includes(this.lit)) this.lit = null;
    const chips = names.map((name) => {
      const [word, sign] = VALUES[this.observations[name]];
      const chip = document.createElement("button");
      chip.type = "button";
      chip.className = `chip ${word}`;
      chip.textContent = `${sign} ${name}`;
      chip.setAttribute("aria-label", `${name}, ${word}`);
      chip.setAttribute("aria-pressed", String(this.lit === name));
      chip.addEventListener("click", () => this.#light(name, chip));
      return chip;
    });
    const none = document.createElement("p");
    none.textContent = this.draft ? "None that the labeler knows." : "";
    this.chips.replaceChildren(...(chips.length ? chips : [none]));
  }

  #light(name, chip) {
    this.lit = this.lit === name ? null : name;
    for (const other of this.chips.children) other.setAttribute("aria-pressed", String(this.lit !== null && other === chip));
    this.#drawShade();
    const said = this.spans.filter((span) => name in span.observations).map((span) => span.text);
    this.sentence.textContent = this.lit ? said.join(" ") || "No one sentence says so; several together do." : "";
    this.sentence.setAttribute("role", "status");
    if (!this.lit) this.#describe();
  }

  // What is known of the sentence at the caret.
  #describe() {
    if (this.lit && document.activeElement !== this.text) return;
    this.sentence.removeAttribute("role"); // not to be read out at every key
    const caret = this.text.selectionStart;
    const places = this.#places();
    const at = places.findIndex(([start, end]) => caret >= start && caret <= end);
    const known = (this.draft?.sentences ?? []).length > 0;
    if (document.activeElement !== this.text || at < 0) {
      this.sentence.textContent = known ? "Shaded where the model was less sure. That does not tell what is true." : "";
      return;
    }
    const found = this.confidence.get(places[at][2].text);
    const parts = [`Sentence ${at + 1} of ${places.length}`];
    if (!found) parts.push(known ? "written by you" : "the model tells no confidence");
    if (found && "log_prob" in found) parts.push(`probability of its tokens ${Math.exp(found.log_prob).toFixed(2)}`);
    if (found && "agreement" in found) parts.push(`${Math.round(found.agreement * 100)} % of the other candidates agree`);
    this.sentence.textContent = parts.join(" · ");
  }
}

// 0..1: the share of candidates that agree, else the geometric mean of the probabilities of the tokens.
function sureness(found) {
  if (!found) return null;
  return found.agreement ?? (found.log_prob === undefined ? null : Math.exp(found.log_prob));
}

function words(text) {
  return text.trim().split(/\s+/).join(" ");
}

function rank(value) {
  return { 1: 0, "-1": 1, 0: 2 }[value];
}
