// A reply can come quicker than a screen shows it, and each drawing of a long one takes longer than the one before. Drawn at each
// piece, a page falls behind its server until it hears no key. So pieces only ask for a drawing.

/** Milliseconds of a frame. */
const FRAME = 16;
/** Time left to others after a drawing, in drawings. */
const REST = 4;

/** Draws when asked: at most once a frame, and at most a fifth of the time. */
export class Drawing {
  #draw;
  #timer = null;
  #rest = 0;

  constructor(draw) {
    this.#draw = draw;
  }

  /** Soon: all asked for until then is one drawing. */
  ask() {
    this.#timer ??= setTimeout(() => this.now(), this.#rest);
  }

  /** Now, whoever has asked for it. */
  now() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const began = performance.now();
    this.#draw();
    this.#rest = Math.max(FRAME, REST * (performance.now() - began));
  }
}
