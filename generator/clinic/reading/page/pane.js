// One film on a canvas: window, level, zoom, pan, by mouse, touch and keyboard.

import { clamp, fillTable, paint } from "./film.js";

const MOST_PIXELS = 2; // canvas pixels to a CSS pixel, at most

export class Pane {
  // changed() is called when the window changes, activated(pane) when the reader turns to this film.
  constructor({ view, prior }, { changed, activated, alone, moving }) {
    Object.assign(this, { view, prior, changed, moving, film: null, heat: null, inverted: false });
    this.root = document.createElement("figure");
    this.root.className = "pane";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    const caption = document.createElement("figcaption");
    this.label = document.createElement("span");
    this.label.className = prior ? "before" : "view";
    this.label.textContent = prior ? `Prior ${view}` : view;
    this.note = document.createElement("span");
    this.note.className = "note";
    caption.append(this.label, this.note);
    this.values = document.createElement("span");
    this.values.className = "values";
    this.root.append(this.canvas, caption, this.values);
    this.canvas.setAttribute("aria-label", `${this.label.textContent} film`);
    this.tell("Loading …");

    this.context = this.canvas.getContext("2d", { alpha: false });
    this.table = new Uint32Array(65536);
    this.samples = new Uint16Array(0);
    this.pointers = new Map();
    this.canvas.addEventListener("pointerdown", (event) => {
      activated(this);
      this.canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    });
    this.canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    this.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    this.canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.canvas.addEventListener("dblclick", () => alone(this));
    this.canvas.addEventListener("focus", () => activated(this));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.root);
  }

  close() {
    this.observer.disconnect();
    this.root.remove();
  }

  tell(text) {
    this.note.textContent = text;
  }

  show(film) {
    this.film = film;
    this.tell(film.warnings.join("; "));
    this.#resize();
    this.reset();
  }

  reset() {
    if (!this.film) return;
    this.range = [...this.film.window];
    this.inverted = false;
    this.fitted = true;
    this.#fit();
    this.#draw(false);
    this.changed(this);
  }

  get level() {
    return (this.range[0] + this.range[1]) / 2;
  }

  get width() {
    return this.range[1] - this.range[0];
  }

  setWindow(level, width) {
    if (!this.film) return;
    const half = clamp(width, 0.01, 2) / 2;
    const middle = clamp(level, -0.5, 1.5);
    this.range = [middle - half, middle + half];
    this.#draw(true);
    this.changed(this);
  }

  invert() {
    this.inverted = !this.inverted;
    this.#draw(true);
    this.changed(this);
  }

  // Zoom about a point of the canvas, by default its middle.
  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.film) return;
    const scale = clamp(this.scale * factor, this.#fitting() / 2, 16);
    this.left += x / this.scale - x / scale;
    this.top += y / this.scale - y / scale;
    this.scale = scale;
    this.fitted = false;
    this.#keepInside();
    this.#draw(false);
  }

  pan(x, y) {
    if (!this.film) return;
    this.left -= x / this.scale;
    this.top -= y / this.scale;
    this.fitted = false;
    this.#keepInside();
    this.#draw(false);
  }

  // Values [h][w] over the film's center square, in multiples of the mean; null takes them away.
  overlay(values) {
    this.heat = values && heatmap(values);
    this.#draw(true);
  }

  #fitting() {
    return Math.min(this.canvas.width / this.film.width, this.canvas.height / this.film.height);
  }

  #fit() {
    this.scale = this.#fitting() || 1;
    this.left = (this.film.width - this.canvas.width / this.scale) / 2;
    this.top = (this.film.height - this.canvas.height / this.scale) / 2;
  }

  #keepInside() {
    const wide = this.canvas.width / this.scale;
    const high = this.canvas.height / this.scale;
    this.left = clamp(this.left, -wide / 2, this.film.width - wide / 2);
    this.top = clamp(this.top, -high / 2, this.film.height - high / 2);
  }

  #resize() {
    const ratio = Math.min(devicePixelRatio || 1, MOST_PIXELS);
    const width = Math.round(this.root.clientWidth * ratio);
    const height = Math.round(this.root.clientHeight * ratio);
    if (!width || !height || (width === this.canvas.width && height === this.canvas.height && this.image)) return;
    this.canvas.width = width;
    this.canvas.height = height;
    this.image = this.context.createImageData(width, height);
    this.colors = new Uint32Array(this.image.data.buffer);
    this.samples = new Uint16Array(width * height);
    if (!this.film) return;
    if (this.fitted !== false) this.#fit();
    this.#draw(false);
  }

  // `windowed`: only the table changed, so the samples are still good.
  #draw(windowed) {
    if (!windowed) this.covered = null;
    if (this.frame || !this.film || !this.image) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const { width, height } = this.canvas;
      if (!this.covered || this.sampled !== this.film) {
        this.colors.fill(0xff000000);
        this.covered = this.film.sample(this.samples, width, height, this.scale, this.left, this.top);
        this.sampled = this.film;
      }
      fillTable(this.table, this.range, this.inverted);
      paint(this.colors, this.samples, this.table, width, this.covered);
      this.context.putImageData(this.image, 0, 0);
      if (this.heat) this.#drawHeat();
      const percent = (value) => `${Math.round(value * 100)} %`;
      this.values.textContent = `L ${percent(this.level)}  W ${percent(this.width)}  ×${this.scale.toFixed(2)}`;
    });
  }

  #drawHeat() {
    const side = Math.min(this.film.width, this.film.height);
    const x = ((this.film.width - side) / 2 - this.left) * this.scale;
    const y = ((this.film.height - side) / 2 - this.top) * this.scale;
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(this.heat, x, y, side * this.scale, side * this.scale);
  }

  #drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.film) return;
    const ratio = this.canvas.width / this.root.clientWidth;
    const x = (event.clientX - before.clientX) * ratio;
    const y = (event.clientY - before.clientY) * ratio;
    if (this.pointers.size === 2) {
      this.#pinch(event, ratio);
    } else if (this.moving() || event.buttons & 6 || event.shiftKey) {
      this.pan(x, y);
    } else {
      this.setWindow(this.level - (y / this.canvas.height) * 1.2, this.width + (x / this.canvas.width) * 1.6);
    }
    this.pointers.set(event.pointerId, event);
  }

  #pinch(event, ratio) {
    const box = this.canvas.getBoundingClientRect();
    const other = [...this.pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const before = this.pointers.get(event.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
    const middle = (one, side) => (one[side] + other[side]) / 2;
    this.pan((event.clientX - before.clientX) * ratio / 2, (event.clientY - before.clientY) * ratio / 2);
    const x = (middle(event, "clientX") - box.left) * ratio;
    const y = (middle(event, "clientY") - box.top) * ratio;
    this.zoom(apart(event) / apart(before), x, y);
  }

  #wheel(event) {
    event.preventDefault();
    const ratio = this.canvas.width / this.root.clientWidth;
    const box = this.canvas.getBoundingClientRect();
    const step = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
    const factor = Math.exp(-clamp(step, -200, 200) * 0.0018);
    this.zoom(factor, (event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
  }

  #key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way || !this.film || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.shiftKey) this.pan(way[0] * -40, way[1] * -40);
    else this.setWindow(this.level + way[1] * 0.02, this.width + way[0] * 0.04);
  }
}

// A canvas of a pixel to a patch: clear where there is as much attention as everywhere, or less, then warmer.
function heatmap(values) {
  const canvas = document.createElement("canvas");
  canvas.width = values[0].length;
  canvas.height = values.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const most = Math.max(2, ...values.flat());
  values.flat().forEach((value, at) => {
    const share = clamp((value - 1) / (most - 1), 0, 1);
    image.data.set([255, 150 - 60 * share, 40, 190 * Math.sqrt(share)], at * 4);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}
