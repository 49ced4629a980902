/* The last decisions that were no routine, the newest first, each with its reason; the newest with its thresholds.
   Each is a line of a trace (docs/reference.md), as text. */

import { element, setChildren } from "./dom.js";
import { OUTCOMES, formatBytes, formatTime } from "./units.js";

const MAX = 10;
const NAMES = { pages_to_scan: "pages", sleep_millisecs: "sleep (ms)", merge_across_nodes: "across nodes" };

export function showDecisions(table, lines) {
    const rows = lines.slice(-MAX).reverse().map((line, number) => rowOf(JSON.parse(line), number === 0));
    setChildren(table.tBodies[0], ...(rows.length ? rows : [emptyRow()]));
}

function rowOf(pass, isNewest) {
    const { decision, triggers } = pass;
    return element(
        "tr", { role: "row" },
        element("th", { role: "rowheader", scope: "row", "data-label": "When" }, formatTime(pass.at_s)),
        element("td", { role: "cell", "data-label": "Trigger" }, triggers.join(", ")),
        element("td", { role: "cell", "data-label": "Reason" },
                element("div", {},
                        decision.reason, " ", element("span", { class: "minor" }, `(rule ${decision.rule})`),
                        ...(isNewest ? thresholds(decision) : []))),
        element("td", { role: "cell", "data-label": "Result" }, whatChanged(pass)),
        element("td", { role: "cell", class: "number", "data-label": "Saved" },
                element("div", {},
                        formatBytes(savedBytes(pass.snapshot.ksm)),
                        ...savedParts(pass.snapshot.ksm).map(text => element("div", { class: "minor" }, text)))));
}

/* KsmState.saved_kib of virtksm/model/snapshot.py. */
function savedBytes(ksm) {
    if (ksm.pages_shared === null || ksm.pages_sharing === null)
        return null;
    return ((ksm.pages_sharing + (ksm.ksm_zero_pages || 0)) * ksm.page_kib + (ksm.freed_kib || 0)) * 1024;
}

/* What of it is no shared pages, as `virtksm explain` words it. */
function savedParts(ksm) {
    const zero = (ksm.ksm_zero_pages || 0) * ksm.page_kib;
    return [[zero, "by zero pages"], [ksm.freed_kib || 0, "given back by split huge pages"]]
            .filter(([kib]) => kib > 0).map(([kib, how]) => `${formatBytes(kib * 1024)} ${how}`);
}

function thresholds(decision) {
    return (decision.thresholds || []).slice(0, MAX).map(one => element("div", { class: "minor" }, one.text));
}

function whatChanged(pass) {
    const before = pass.snapshot.ksm.settings;
    const changes = Object.keys(NAMES)
            .filter(name => pass.after[name] !== null && pass.after[name] !== before[name])
            .map(name => `${NAMES[name]} ${before[name]} → ${pass.after[name]}`);
    return [OUTCOMES[pass.outcome] || pass.outcome, [...changes, ...pass.refused].join("; ")].filter(Boolean).join(": ");
}

function emptyRow() {
    return element("tr", { role: "row", class: "empty" }, element("td", { role: "cell", colspan: 5 }, "None yet."));
}
