/* The present facts: saved and resident memory, ksmd's state, and the reason. */

import { byId, setText } from "./dom.js";
import { formatDuration, formatKib, formatPercent, oneDecimal } from "./units.js";

export const LATELY_S = 300;

/* Show a status, null where there is none. */
export function showFacts(status) {
    const { now = null, last_pass: last = null } = status || {};
    setText(byId("subtitle"), status === null
        ? "virtksm cannot be asked."
        : `${status.uri}, ${status.agent ? `policy ${status.policy}, ` : ""}virtksm ${status.version}`);
    setText(byId("saved"), now === null ? "–" : formatKib(now.saved_kib));
    setText(byId("saved-share"), now === null || now.saved_percent === null
        ? ""
        : `${formatPercent(now.saved_percent)} of guest memory`);
    setText(byId("guest-count"), now === null || now.guests === null ? "–" : now.guests);
    setText(byId("committed"), now === null || now.guests === null ? "" : `${formatKib(now.committed_kib)} resident`);
    setText(byId("state"), stateText(now, last));
    setText(byId("next"), status && status.next_pass_s !== null
        ? `next pass in ${formatDuration(status.next_pass_s)}`
        : "");
    setText(byId("why"), last === null
        ? "no pass yet"
        : `${last.decision.reason} (rule ${last.decision.rule})`);
}

function stateText(now, last) {
    if (now === null)
        return "unknown";
    if (now.ksm_run === 0 || now.ksm_run === 2)
        return "KSM off";
    const { pages_to_scan: pages, sleep_millisecs: sleepMs } = now.settings;
    if (pages === 0)
        return last === null ? "Not scanning" : "Idle";
    return `Scanning ${pages} pages every ${sleepMs} ms`;
}

/* Return the share of a core that ksmd took lately, in percent, and over how many seconds; null if unknown. Lately is five
   minutes, or since the last sample before where that is longer ago (virtksm/history/curves.py). Samples of before a
   reboot do not count. */
export function coreShare(samples, total, untilS) {
    let began = null;
    let before = 0;
    for (const one of samples) {
        if (total === null || one.ksmd_cpu_seconds === null || untilS - one.at_s < 1)
            continue;
        if (one.ksmd_cpu_seconds < before)
            began = null;
        before = one.ksmd_cpu_seconds;
        if (before <= total && (began === null || began.at_s < untilS - LATELY_S))
            began = one;
    }
    const tookS = began && untilS - began.at_s;
    return began && [100 * (total - began.ksmd_cpu_seconds) / tookS, tookS];
}

export function showCpu(status, samples, untilS) {
    const total = status === null || status.now === null ? null : status.now.ksmd_cpu_seconds;
    const share = coreShare(samples, total, untilS);
    setText(byId("cpu"), share ? `${formatPercent(share[0])} of a core` : "–");
    setText(byId("cpu-total"), [share ? `in the last ${formatDuration(share[1])}` : "",
                                total === null ? "" : `${oneDecimal(total)} s since boot`].filter(Boolean).join("; "));
}
