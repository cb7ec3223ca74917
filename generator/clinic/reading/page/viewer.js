// The films of the open study, those of the next studies fetched ahead, and the tools below them.

import { askFilm, ask } from "./api.js";
import { Film } from "./film.js";
import { Pane } from "./pane.js";

const KEPT = 300_000_000; // bytes of films that are kept

const element = (id) => document.getElementById(id);

export class Viewer {
  constructor({ failed }) {
    this.failed = failed;
    this.panes = [];
    this.films = new Map(); // path -> {film: promise, request: AbortController, bytes: 0 until it is there}, latest last
    this.place = element("panes");
    this.active = null;
    this.move = false;
    const [level, width] = ["level", "width"].map(element);
    for (const slider of [level, width]) {
      slider.addEventListener("input", () => this.active?.setWindow(Number(level.value), Number(width.value)));
    }
    element("zoom-in").addEventListener("click", () => this.active?.zoom(1.25));
    element("zoom-out").addEventListener("click", () => this.active?.zoom(0.8));
    element("invert").addEventListener("click", () => this.active?.invert());
    element("reset").addEventListener("click", () => this.reset());
    element("move").addEventListener("click", () => this.toggleMove());
    element("before").addEventListener("click", () => this.togglePrior());
    element("attention").addEventListener("click", () => this.toggleAttention());
  }

  // number: of the study; films: as the server tells them. Requests for films of other studies are given up.
  show(number, films) {
    for (const [path, { request, bytes }] of this.films) {
      if (bytes || path.startsWith(`/api/studies/${number}/`)) continue;
      request.abort();
      this.films.delete(path);
    }
    this.panes.forEach((pane) => pane.close());
    this.place.classList.remove("alone");
    this.number = number;
    this.panes = films.map((film) => {
      return new Pane(film, {
        changed: (pane) => pane === this.active && this.#tell(),
        activated: (pane) => this.activate(pane),
        alone: (pane) => this.toggleAlone(pane),
        moving: () => this.move,
      });
    });
    this.place.replaceChildren(...this.panes.map((pane) => pane.root));
    element("before").hidden = !films.some((film) => film.prior);
    this.showPrior(true);
    this.panes.forEach(async (pane, at) => {
      try {
        const film = await this.#film(`/api/studies/${number}/films/${at}`);
        if (this.panes.includes(pane)) pane.show(film);
      } catch (error) {
        pane.tell(error.message);
      }
    });
  }

  // Fetch `count` films of a study before it is opened, until another one is.
  async ahead(number, count) {
    const open = this.number;
    for (let at = 0; at < count && open === this.number; at++) {
      await this.#film(`/api/studies/${number}/films/${at}`).catch(() => {});
    }
  }

  activate(pane) {
    this.active = pane;
    this.panes.forEach((one) => one.root.classList.toggle("active", one === pane && this.panes.length > 1));
    this.#tell();
  }

  showPrior(shown) {
    element("before").setAttribute("aria-pressed", String(shown));
    const visible = this.panes.filter((pane) => shown || !pane.prior);
    this.panes.forEach((pane) => (pane.root.hidden = !visible.includes(pane)));
    this.place.style.setProperty("--beside", visible.length - 1);
    this.place.classList.toggle("stacked", visible.length > 2);
    this.activate(visible.includes(this.active) ? this.active : visible[0]);
  }

  togglePrior() {
    if (!element("before").hidden) this.showPrior(element("before").getAttribute("aria-pressed") !== "true");
  }

  choose(at) {
    if (this.panes[at] && !this.panes[at].root.hidden) {
      this.activate(this.panes[at]);
      this.panes[at].canvas.focus();
    }
  }

  toggleAlone(pane = this.active) {
    if (pane) this.activate(pane);
    this.place.classList.toggle("alone");
  }

  toggleMove() {
    this.move = !this.move;
    this.place.classList.toggle("moving", this.move);
    element("move").setAttribute("aria-pressed", String(this.move));
  }

  reset() {
    if (this.active?.heat) this.#hideAttention();
    this.active?.reset();
    this.#tell();
  }

  async toggleAttention() {
    const pane = this.active;
    if (!pane?.film || element("attention").hidden) return;
    if (pane.heat) {
      this.#hideAttention();
    } else {
      const at = this.panes.indexOf(pane);
      pane.tell("Attention …");
      try {
        const found = await ask(`/api/studies/${this.number}/films/${at}/attention`);
        pane.overlay(found.attention);
        pane.tell("Attention of the vision tower: where its features come from, not why.");
      } catch (error) {
        pane.tell("");
        this.failed(error);
      }
    }
    this.#tell();
  }

  #hideAttention() {
    this.active.overlay(null);
    this.active.tell(this.active.film.warnings.join("; "));
  }

  async #film(path) {
    const kept = this.films.get(path) ?? fetchFilm(path);
    this.films.delete(path);
    this.films.set(path, kept);
    try {
      const film = await kept.film;
      kept.bytes = film.bytes;
      this.#forget();
      return film;
    } catch (error) {
      if (this.films.get(path) === kept) this.films.delete(path);
      throw error;
    }
  }

  #forget() {
    let sum = 0;
    for (const [path, { bytes }] of [...this.films].reverse()) {
      sum += bytes;
      if (bytes && sum > KEPT) this.films.delete(path);
    }
  }

  #tell() {
    const pane = this.active;
    const ready = Boolean(pane?.film);
    for (const id of ["level", "width", "invert", "reset", "zoom-in", "zoom-out"]) element(id).disabled = !ready;
    element("attention").setAttribute("aria-pressed", String(Boolean(pane?.heat)));
    element("invert").setAttribute("aria-pressed", String(Boolean(pane?.inverted)));
    if (!ready) return;
    element("level").value = pane.level;
    element("width").value = pane.width;
    const percent = (value) => `${Math.round(value * 100)} %`;
    element("level").setAttribute("aria-valuetext", percent(pane.level));
    element("width").setAttribute("aria-valuetext", percent(pane.width));
  }
}

function fetchFilm(path) {
  const request = new AbortController();
  const film = askFilm(path, request.signal).then((found) => new Film(found));
  return { film, request, bytes: 0 };
}
