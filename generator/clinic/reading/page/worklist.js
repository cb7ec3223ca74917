// The list of studies: as many as there are, of which only those in sight are in the document.

const ROW = 44;

export class Worklist {
  constructor({ list, inner, search, filter, found, opened }) {
    Object.assign(this, { list, inner, search, filter, found, opened, studies: [], shown: [], current: -1, cursor: 0 });
    this.rows = new Map();
    search.addEventListener("input", () => this.apply());
    filter.addEventListener("change", () => this.apply());
    list.addEventListener("scroll", () => this.draw());
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.opened(Number(row.dataset.number), true);
    });
    list.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(list);
  }

  fill(studies) {
    this.studies = studies;
    this.texts = studies.map((one) => `${one.id} ${one.subject} ${one.indication} ${one.views.join(" ")}`.toLowerCase());
    this.apply();
  }

  apply() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = this.filter.value;
    this.shown = [];
    this.studies.forEach((study, number) => {
      const wanted = !status || study.status === status;
      if (wanted && words.every((word) => this.texts[number].includes(word))) this.shown.push(number);
    });
    const count = this.shown.length;
    this.found.textContent = count === this.studies.length ? `${count} studies` : `${count} of ${this.studies.length} studies`;
    this.inner.style.height = `${count * ROW}px`;
    this.#clear();
    this.cursor = Math.max(0, this.shown.indexOf(this.current));
    this.reveal();
  }

  // The number of the study `step` places on from the open one in the list; undefined at its ends.
  beside(step) {
    const place = this.shown.indexOf(this.current);
    return this.shown[place < 0 ? 0 : place + step];
  }

  // Up to `count` numbers of unread studies of the list: those after the open one, then from its top.
  coming(count) {
    const start = this.shown.indexOf(this.current) + 1;
    const order = [...this.shown.slice(start), ...this.shown.slice(0, Math.max(0, start - 1))];
    const found = [];
    for (const number of order) {
      if (found.length === count) break;
      if (this.studies[number].status === "unread") found.push(number);
    }
    return found;
  }

  select(number) {
    this.current = number;
    const place = this.shown.indexOf(number);
    if (place >= 0) this.cursor = place;
    this.#clear();
    this.reveal();
  }

  // status: what was decided; edited: whether there is a text that is not decided on.
  mark(number, marks) {
    Object.assign(this.studies[number], marks);
    this.#clear();
    this.draw();
  }

  reveal() {
    const top = this.cursor * ROW;
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop) this.list.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.list.scrollTop = top + ROW - clientHeight;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.shown.length, Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + 4);
    for (const [place, row] of this.rows) {
      if (place < first || place >= last) {
        row.remove();
        this.rows.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      if (!this.rows.has(place)) this.#add(place);
    }
    const active = this.rows.get(this.cursor);
    if (active) this.list.setAttribute("aria-activedescendant", active.id);
    else this.list.removeAttribute("aria-activedescendant");
  }

  #clear() {
    this.rows.clear();
    this.inner.replaceChildren();
  }

  #add(place) {
    const number = this.shown[place];
    const study = this.studies[number];
    const row = document.createElement("div");
    row.className = "row";
    row.id = `study-${number}`;
    row.dataset.number = number;
    row.style.top = `${place * ROW}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(number === this.current));
    row.setAttribute("aria-posinset", place + 1);
    row.setAttribute("aria-setsize", this.shown.length);
    const name = document.createElement("span");
    name.textContent = shorten(study.id);
    name.title = study.id;
    const about = document.createElement("span");
    about.className = "about";
    const mark = document.createElement("span");
    mark.className = `mark ${study.status}`;
    mark.textContent = [study.status === "unread" ? "" : study.status, study.edited ? "edited" : ""].filter(Boolean).join(", ");
    const views = study.views.join(", ");
    about.append(mark, mark.textContent ? ` · ${views}` : views);
    if (study.indication) about.append(` · ${study.indication}`);
    row.append(name, about);
    this.rows.set(place, row);
    this.inner.append(row);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1);
    const last = this.shown.length - 1;
    const to = {
      ArrowDown: this.cursor + 1,
      ArrowUp: this.cursor - 1,
      PageDown: this.cursor + page,
      PageUp: this.cursor - page,
      Home: 0,
      End: last,
    }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      event.stopPropagation();
      this.cursor = Math.min(Math.max(to, 0), Math.max(0, last));
      this.reveal();
      if (this.shown.length) this.opened(this.shown[this.cursor]);
    }
  }
}

// The end of a path, for a list: what tells files apart.
function shorten(id) {
  return id.length > 28 && id.includes("/") ? `…${id.slice(-27)}` : id;
}
