/* The last decisions that were no routine, the newest first, each with its reason; the newest with its thresholds. */

import { element, setChildren } from "./dom.js";
import { formatKib, formatTime } from "./units.js";

const MAX = 10;
const NAMES = { pages_to_scan: "pages", sleep_millisecs: "sleep (ms)", merge_across_nodes: "across nodes" };

export function showDecisions(table, decisions) {
    const rows = decisions.slice(-MAX).reverse().map((entry, number) => rowOf(entry, number === 0));
    setChildren(table.tBodies[0], ...(rows.length ? rows : [emptyRow()]));
}

function rowOf(entry, isNewest) {
    const { decision, sensed, triggers } = entry.pass;
    return element(
        "tr", { role: "row" },
        element("th", { role: "rowheader", scope: "row", "data-label": "When" }, formatTime(entry.at)),
        element("td", { role: "cell", "data-label": "For" }, triggers.join(", ")),
        element("td", { role: "cell", "data-label": "Why" },
                element("div", {},
                        decision.reason, " ", element("span", { class: "minor" }, `(rule ${decision.rule})`),
                        ...(isNewest ? thresholds(decision) : []))),
        element("td", { role: "cell", "data-label": "Did" }, whatChanged(entry.pass)),
        element("td", { role: "cell", class: "number", "data-label": "Saved" }, formatKib(sensed.saved_kib)));
}

function thresholds(decision) {
    return (decision.thresholds || []).slice(0, MAX).map(one => element("div", { class: "minor" }, one.text));
}

function whatChanged(pass) {
    const changes = Object.keys(NAMES)
            .filter(name => pass.after[name] !== null && pass.after[name] !== pass.before[name])
            .map(name => `${NAMES[name]} ${pass.before[name]} → ${pass.after[name]}`);
    const refusals = pass.refused.map(one => one.message);
    return [pass.outcome, [...changes, ...refusals].join("; ")].filter(Boolean).join(": ");
}

function emptyRow() {
    return element("tr", { role: "row", class: "empty" }, element("td", { role: "cell", colspan: 5 }, "None yet."));
}
