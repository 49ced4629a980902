/* The present facts, in the words of `virtksm status`: saved and resident memory, ksmd's state, and the reason. */

import { byId, setText } from "./dom.js";
import { formatBytes, formatDuration, formatPercent, oneDecimal } from "./units.js";

/* Show a status, null where there is none. */
export function showFacts(status) {
    const { now = null, last_pass: last = null } = status || {};
    setText(byId("subtitle"), status === null
        ? "virtksm cannot be asked."
        : `${status.uri}, ${status.agent ? `policy ${status.policy}, ` : ""}virtksm ${status.version}`);
    setText(byId("saved"), now === null ? "–" : formatBytes(now.saved_bytes));
    setText(byId("saved-share"), now === null || now.saved_percent === null
        ? ""
        : `${formatPercent(now.saved_percent)} of guest memory`);
    setText(byId("guest-count"), now === null || now.guests === null ? "–" : now.guests);
    setText(byId("committed"), now === null || now.guests === null ? "" : `${formatBytes(now.committed_bytes)} resident`);
    setText(byId("state"), stateText(status));
    setText(byId("next"), status && status.next_pass_s !== null
        ? `next pass in ${formatDuration(status.next_pass_s)}`
        : "");
    setText(byId("why"), last === null
        ? "no pass yet"
        : `${last.decision.reason} (rule ${last.decision.rule})`);
    showScan((status && status.full_scan) || null);
}

function stateText(status) {
    if (status === null || status.now === null)
        return "unknown";
    const { ksm_run: run, settings: { pages_to_scan: pages, sleep_millisecs: sleepMs } } = status.now;
    if (run === 0 || run === 2)
        return "KSM off";
    if (pages === null)
        return "unknown";
    if (pages === 0)
        return status.paused ? "Paused" : "Idle";
    return status.full_scan ? "Scanning" : `Scanning ${pages} pages every ${sleepMs} ms`;
}

function showScan(scan) {
    byId("scan").hidden = scan === null;
    if (scan === null)
        return;
    const { done_bytes: done, total_bytes: total, left_s: leftS } = scan;
    const percent = done === null || !total ? null : Math.min(100 * done / total, 100);
    if (percent === null)
        byId("scan-bar").removeAttribute("value");
    else
        byId("scan-bar").value = percent;
    setText(byId("scan-text"), (percent === null ? "" : `${percent.toFixed(0)} % of `) + formatBytes(total) +
            (leftS === null ? "" : `, ${formatDuration(Math.max(leftS, 1))} left`));
}

/* Show ksmd's CPU time: since boot, and its share of a core lately ({core_percent, over_s}, null where unknown). */
export function showCpu(status, lately) {
    const total = status === null || status.now === null ? null : status.now.ksmd_cpu_seconds;
    const isKnown = lately !== null && lately.core_percent !== null;
    setText(byId("cpu"), isKnown ? `${formatPercent(lately.core_percent)} of a core` : "–");
    setText(byId("cpu-total"), [isKnown ? `last ${formatDuration(lately.over_s)}` : "",
                                total === null ? "" : `${oneDecimal(total)} s CPU since boot`].filter(Boolean).join(", "));
}
