/* Remedies where something is missing: an agent, permission, KSM, libvirt. Pure: facts in, notices out. */

import { DENIED, NOT_INSTALLED, NO_AGENT } from "./agent.js";

const START = "systemctl enable --now virtksm.service";
const MAX_NOTICES = 50;
const SWITCH_ON = "systemctl restart virtksm-ksm.service";

/* Return notices {level, title, text}: of a Problem in asking the agent (or null), and a status (or null). */
export function noticesOf(problem, status) {
    const notices = [...ofProblem(problem), ...(status === null ? [] : [...ofHost(status), ...ofAgent(status)])];
    return notices.slice(0, MAX_NOTICES);
}

function ofProblem(problem) {
    if (problem === null)
        return [];
    switch (problem.kind) {
    case NOT_INSTALLED:
        return [{ level: "danger", title: "virtksm is not installed on this host",
                  text: "Install the package virtksm, then reload this page." }];
    case NO_AGENT:
        return [{ level: "warning", title: "No agent runs on this host",
                  text: `Start it as root: ${START}. Until then nothing tunes KSM.` }];
    case DENIED:
        return [{ level: "warning", title: "You may not ask the agent",
                  text: "Turn on administrative access, or have an administrator put you into the group that the " +
                        "configuration's status_group names." }];
    default:
        return [{ level: "danger", title: "The agent does not answer as it should", text: problem.message }];
    }
}

function ofHost(status) {
    const { now, paused } = status;
    if (now === null || (now.origin === "local" && now.ksm_run === null))
        return [{ level: "danger", title: "No KSM can be seen on this host",
                  text: "Its kernel has none (CONFIG_KSM), or it has not been asked yet; see the checks below." }];
    const notices = [];
    if (paused)
        notices.push({ level: "warning", title: "virtksm is paused",
                       text: "ksmd stays idle until root runs: virtksm resume" });
    else if (now.ksm_run === 0 || now.ksm_run === 2)
        notices.push({ level: "warning", title: "KSM is off",
                       text: `Nothing merges. Switch it on as root: ${SWITCH_ON}` });
    if (now.advisor_mode !== null && now.advisor_mode !== "none")
        notices.push({ level: "warning", title: `The kernel's own advisor (${now.advisor_mode}) sets the pages to scan`,
                       text: "As root: echo none > /sys/kernel/mm/ksm/advisor_mode" });
    return notices;
}

function ofAgent(status) {
    const { libvirt, last_pass: last, stranded } = status;
    const notices = [];
    if (!libvirt.answers)
        notices.push({ level: "danger", title: "libvirt does not answer",
                       text: libvirt.error || `Waiting for ${libvirt.waiting_for || "it"}.` });
    if (status.agent && stranded.possible)
        notices.push({ level: "danger", title: "ksmd may keep scanning until libvirt answers",
                       text: stranded.worst_core_percent === null
                           ? "The first pass has not returned."
                           : `It may take up to ${stranded.worst_core_percent} % of a core.` });
    for (const text of last === null ? [] : last.warnings)
        notices.push({ level: "warning", title: "Warning of the last pass", text });
    return notices;
}
