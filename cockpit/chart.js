/* One curve over time as SVG: pieces of [Unix time, value], the last of them now. Redrawn whole, some hundred points.

   The figure's caption has the picture in words, and the value under the pointer or the arrow keys. */

import { setText, svgElement } from "./dom.js";
import { formatTime } from "./units.js";

const HEIGHT = 150;
const LEFT = 72;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 24;
const MARKS = 2;
const MAX_POINTS = 2000;
const MIN_PX_A_TIME = 80;
const STEPS_S = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200];

export class Chart {
    /* `figure` has an svg and a figcaption; `format` words a value; the scale goes to `minTop` at least. */
    constructor(figure, { name, format, minTop, niceTop }) {
        this.svg = figure.querySelector("svg");
        this.caption = figure.querySelector("figcaption");
        Object.assign(this, { name, format, minTop, niceTop });
        this.curve = [];
        this.chosen = null;
        this.svg.addEventListener("pointermove", event => this.choose(this.timeAt(event.offsetX)));
        this.svg.addEventListener("pointerleave", () => this.choose(null));
        this.svg.addEventListener("blur", () => this.choose(null));
        this.svg.addEventListener("keydown", event => this.onKey(event));
        new ResizeObserver(() => this.draw()).observe(this.svg);
    }

    show(curve, sinceS, untilS) {
        Object.assign(this, { curve: lastPoints(curve), sinceS, untilS });
        if (this.chosen !== null && this.chosen[0] < sinceS)
            this.chosen = null;
        this.draw();
    }

    draw() {
        if (this.untilS === undefined)
            return;
        this.width = Math.max(this.svg.clientWidth, LEFT + RIGHT + 1);
        const points = this.pointsInView();
        this.top = this.niceTop(Math.max(this.minTop, ...points.map(([, value]) => value)));
        this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
        this.svg.replaceChildren(
            ...this.valueMarks(), ...this.timeMarks(), ...this.curve.flatMap(piece => this.drawPiece(piece)),
            ...this.cursor());
        const text = this.chosen === null ? this.summary(points) : this.chosenText();
        this.svg.setAttribute("aria-label", `${this.name}: ${text}`);
        setText(this.caption, text);
    }

    summary(points) {
        if (points.length === 0)
            return "no history yet";
        const values = points.map(([, value]) => value);
        return `now ${this.format(values[values.length - 1])}, max ${this.format(Math.max(...values))}`;
    }

    chosenText() {
        const [atS, value] = this.chosen;
        return `${formatTime(atS)}: ${this.format(value)}`;
    }

    /* Choose the point that is nearest to a time, null for none. */
    choose(atS, points = this.pointsInView()) {
        this.chosen = atS === null || points.length === 0
            ? null
            : points.reduce((best, one) => Math.abs(one[0] - atS) < Math.abs(best[0] - atS) ? one : best);
        this.draw();
    }

    onKey(event) {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step === undefined)
            return;
        event.preventDefault();
        const from = this.chosen === null ? this.untilS : this.chosen[0];
        const beyond = this.pointsInView().filter(([atS]) => this.chosen === null || step * (atS - from) > 0);
        if (beyond.length > 0)
            this.choose(from + step * (this.untilS - this.sinceS) / 60, beyond);
    }

    pointsInView() {
        return this.curve.flat().filter(([atS]) => atS >= this.sinceS);
    }

    x(atS) {
        return LEFT + (this.width - LEFT - RIGHT) * (atS - this.sinceS) / (this.untilS - this.sinceS);
    }

    y(value) {
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / this.top;
    }

    timeAt(x) {
        return this.sinceS + (this.untilS - this.sinceS) * (x - LEFT) / (this.width - LEFT - RIGHT);
    }

    drawPiece(piece) {
        const seen = this.cutToView(piece);
        if (seen.length === 0)
            return [];
        const corners = seen.map(([atS, value]) => `${this.x(atS).toFixed(1)},${this.y(value).toFixed(1)}`);
        const [left, right, floor] = [this.x(seen[0][0]), this.x(seen[seen.length - 1][0]), this.y(0)];
        return [
            svgElement("polygon", { class: "area", points: `${left},${floor} ${corners.join(" ")} ${right},${floor}` }),
            svgElement("polyline", { class: "line", points: corners.join(" ") }),
        ];
    }

    /* A piece that began before the view enters it at its edge. */
    cutToView(piece) {
        const first = piece.findIndex(([atS]) => atS >= this.sinceS);
        if (first <= 0)
            return first < 0 ? [] : piece;
        const [[fromS, from], [toS, to]] = [piece[first - 1], piece[first]];
        const share = toS === fromS ? 1 : (this.sinceS - fromS) / (toS - fromS);
        return [[this.sinceS, from + share * (to - from)], ...piece.slice(first)];
    }

    valueMarks() {
        const values = Array.from({ length: MARKS + 1 }, (_, number) => this.top * number / MARKS);
        return values.flatMap(value => [
            svgElement("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(value), y2: this.y(value) }),
            svgElement("text", { class: "mark", x: LEFT - 8, y: this.y(value) + 4, "text-anchor": "end" },
                       this.format(value)),
        ]);
    }

    timeMarks() {
        const marks = evenTimes(this.sinceS, this.untilS, (this.width - LEFT - RIGHT) / MIN_PX_A_TIME)
                .filter(atS => this.x(this.untilS) - this.x(atS) >= MIN_PX_A_TIME / 2)
                .map(atS => this.timeMark(this.x(atS), "middle", shortTime(atS)));
        return [...marks, this.timeMark(this.x(this.untilS), "end", "now")];
    }

    timeMark(x, anchor, text) {
        return svgElement("text", { class: "mark", x, y: HEIGHT - 6, "text-anchor": anchor }, text);
    }

    cursor() {
        if (this.chosen === null)
            return [];
        const [x, y] = [this.x(this.chosen[0]), this.y(this.chosen[1])];
        return [
            svgElement("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
            svgElement("circle", { class: "cursor", cx: x, cy: y, r: 4 }),
        ];
    }
}

/* The pieces of a curve with its last MAX_POINTS points. */
export function lastPoints(curve) {
    const ends = [];
    let left = MAX_POINTS;
    for (let number = curve.length - 1; number >= 0 && left > 0; number--) {
        ends.unshift(curve[number].slice(-left));
        left -= ends[0].length;
    }
    return ends;
}

function shortTime(atS) {
    return new Date(atS * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

/* Even times of the local clock between two, at most about `count` of them. */
export function evenTimes(sinceS, untilS, count) {
    const stepS = STEPS_S.find(step => (untilS - sinceS) / step <= count) || STEPS_S[STEPS_S.length - 1];
    const offsetS = -60 * new Date(untilS * 1000).getTimezoneOffset();
    const found = [];
    for (let atS = Math.ceil((sinceS + offsetS) / stepS) * stepS - offsetS; atS <= untilS; atS += stepS)
        found.push(atS);
    return found;
}

/* The least of 1, 2, 5, 10, 20... times `unit` that is not below `value`. */
export function niceAbove(value, unit = 1) {
    const power = unit * 10 ** Math.floor(Math.log10(Math.max(value, unit) / unit));
    return [1, 2, 5, 10].map(factor => factor * power).find(nice => nice >= value) || 10 * power;
}
