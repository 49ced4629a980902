/* The page: asks, shows, and acts.

   It asks the agent for its status every two seconds, and for more where that has changed: the guests and the last
   decisions after a pass, the curves now and then. While the page is hidden it asks nothing. When it asks goes by a clock
   that nobody sets. */

import { FAILED, NO_AGENT, Problem, askToAct, askToRead, inBytes, runJson } from "./agent.js";
import { Chart, niceAbove } from "./chart.js";
import { showDecisions } from "./decisions.js";
import { byId, element, setChildren, setText } from "./dom.js";
import { showCpu, showFacts } from "./facts.js";
import { showFindings } from "./findings.js";
import { GuestTable } from "./guests.js";
import { unitsUri } from "./host.js";
import { noticesOf } from "./notices.js";
import { applySettings, readSettings } from "./settings.js";
import { OUTCOMES, formatBytes, formatPercent } from "./units.js";

const REFRESH_MS = 2000;
const GUESTS_EVERY_MS = 10000;
const ALONE_EVERY_MS = 10000;
const POINTS = 300;
const SAMPLE_S = 10;
const LATELY_S = 300;

const guestTable = new GuestTable(byId("guests"));
const savedChart = new Chart(byId("saved-chart"), {
    name: "Saved memory",
    format: kib => formatBytes(1024 * kib),
    minTop: 1024,
    niceTop: kib => kib < 1024 * 1024 ? niceAbove(kib, 1024) : niceAbove(kib, 1024 * 1024),
});
const cpuChart = new Chart(byId("cpu-chart"), {
    name: "CPU time of ksmd", format: formatPercent, minTop: 5, niceTop: percent => niceAbove(percent),
});
const permission = cockpit.permission({ admin: true });

let status = null;
let alone = null;
let curves = null;
let shownPass = "";
let guestsDueMs = 0;
let guestsAsked = null;
let guestsShown = null;
let curvesDueMs = 0;
let isActing = false;
let refreshing = null;
let guestsRefreshing = null;

/* --- asking ------------------------------------------------------------------------------------------------------ */

/* Refresh the page, or wait for the refresh that is under way. */
function refresh() {
    refreshing = refreshing || refreshOnce().catch(showBug).finally(() => { refreshing = null });
    return refreshing;
}

/* Any other failure is an answer that this page does not understand. */
function showBug(trouble) {
    showNotices([{ level: "danger", title: "This page does not understand what virtksm says",
                   text: `Are they of the same version? (${trouble})` }]);
}

async function refreshOnce() {
    let problem = null;
    try {
        status = inBytes((await askToRead({ op: "status" })).status);
        alone = null;
    } catch (trouble) {
        if (alone === null || alone.trouble.kind !== trouble.kind || performance.now() >= alone.dueMs)
            alone = await readWithoutAgent(trouble);
        ({ problem, status } = alone);
    }
    showNotices(noticesOf(problem, status));
    showFacts(status);
    showRights();
    await showHistory(problem);
    showCharts();
    if (countGuests() !== guestsAsked)
        guestsDueMs = 0;
    listGuests();
}

/* Run the command where the agent cannot be asked: it reads the host itself, and reports the problem. */
async function readWithoutAgent(trouble) {
    const seen = { trouble, problem: trouble, status: null, dueMs: performance.now() + ALONE_EVERY_MS };
    try {
        seen.status = inBytes(await runJson("status"));
        if (seen.status.agent)
            seen.problem = null;
    } catch (other) {
        if (trouble.kind === NO_AGENT)
            seen.problem = other;
    }
    return seen;
}

async function showHistory(problem) {
    if (problem !== null) {
        curves = null;
        curvesDueMs = 0;
        shownPass = "";
        showDecisions(byId("decisions"), []);
        return;
    }
    try {
        await readCurves();
        const pass = JSON.stringify(status.last_pass);
        if (status.last_pass !== null && pass !== shownPass) {
            showDecisions(byId("decisions"), (await askToRead({ op: "decisions", last: 10 })).decisions);
            shownPass = pass;
            if (status.last_pass.triggers.some(trigger => trigger !== "timer"))
                guestsDueMs = 0;
        }
    } catch (trouble) {
        showNotices(noticesOf(trouble, status));
    }
}

/* Have the agent make the curves anew, as often as they can have changed visibly; at least once a minute. */
async function readCurves() {
    const span = Number(byId("span").value);
    if (performance.now() < curvesDueMs)
        return;
    const widthS = Math.max(SAMPLE_S, span / 180);
    const asked = { op: "history", seconds: span + LATELY_S, points: POINTS, width_s: widthS };
    const { history } = await askToRead(asked);
    curves = { ...history.curves, untilS: history.now_s, sinceS: history.now_s - span };
    if (Number(byId("span").value) === span) // else another was chosen meanwhile, and is due
        curvesDueMs = performance.now() + 1000 * Math.min(Math.max(SAMPLE_S, span / POINTS), 60);
}

/* Ask for the guests where that is due, one command at a time. Nothing waits for it: libvirt may hang. */
function listGuests() {
    if (guestsRefreshing === null && performance.now() >= guestsDueMs)
        guestsRefreshing = listGuestsOnce().finally(() => {
            guestsRefreshing = null;
            byId("page").setAttribute("aria-busy", "false");
        });
}

async function listGuestsOnce() {
    guestsDueMs = performance.now() + GUESTS_EVERY_MS;
    guestsAsked = countGuests();
    try {
        const survey = await runJson("guests", ...await hostArguments());
        guestTable.show(survey.guests);
        setText(byId("profit"), formatBytes(profitOf(survey.host)));
        const notes = [...await otherHost(survey.uri), ...survey.notes];
        setChildren(byId("guest-notes"), ...notes.map(note => element("li", {}, note)));
        announceGuests(survey.guests.length);
    } catch (trouble) {
        guestTable.show(null);
        setText(byId("profit"), "–");
        setChildren(byId("guest-notes"), element("li", {}, trouble.message));
    }
}

/* What split huge pages gave back is in the agent's status, and not for every user's command to read. */
function profitOf(host) {
    const isLacking = host.profit_bytes !== null && host.freed_bytes === null && status !== null && status.now !== null;
    return isLacking ? host.profit_bytes + (status.now.freed_bytes || 0) : host.profit_bytes;
}

function countGuests() {
    return status === null || status.now === null ? null : status.now.guests;
}

async function examine() {
    setText(byId("doctor-summary"), "Checking…");
    try {
        const { findings } = await runJson("doctor", ...await hostArguments());
        showFindings({ summary: byId("doctor-summary"), todo: byId("todo"), rest: byId("rest"), fold: byId("fold") },
                     findings, permission.allowed === true);
    } catch (trouble) {
        setText(byId("doctor-summary"), trouble.message);
    }
}

async function showSettings() {
    try {
        const settings = await readSettings();
        for (const name of ["policy", "engage"]) {
            const { value, origin, choices, meaning } = settings[name];
            setChildren(byId(name), ...choices.map(choice => element("option", { value: choice }, choice)));
            byId(name).value = value;
            setText(byId(`${name}-help`), meaning);
            setText(byId(`${name}-origin`), origin === "default" ? "This is the default." : `From ${origin}.`);
        }
        followPolicy();
    } catch (trouble) {
        setText(byId("policy-origin"), trouble.message);
    }
}

/* No text of the agent becomes an argument: the commands may run as root (host.js). */
async function hostArguments() {
    const uri = await unitsUri();
    return uri === null ? [] : ["--connect", uri];
}

/* Report an agent that claims to serve another connection than the one that was read. */
async function otherHost(seenUri) {
    if (status === null || !status.agent || [seenUri, await unitsUri()].includes(status.uri))
        return [];
    return [`The agent says that it serves ${status.uri}. These guests, and the checks below, are of ${seenUri}.`];
}

/* --- showing ----------------------------------------------------------------------------------------------------- */

function showCharts() {
    const { saved_kib: saved, core_percent: cpu, ksmd, sinceS, untilS } = curves || emptyCurves();
    savedChart.show(saved, sinceS, untilS);
    cpuChart.show(cpu, sinceS, untilS);
    showCpu(status, ksmd);
}

function emptyCurves() {
    const untilS = Date.now() / 1000;
    return { saved_kib: [], core_percent: [], ksmd: (status && status.ksmd) || null,
             sinceS: untilS - Number(byId("span").value), untilS };
}

function showNotices(notices) {
    setChildren(byId("notices"), ...notices.map(notice => element(
        "div", { class: `notice ${notice.level}`, role: notice.level === "danger" ? "alert" : null },
        element("strong", {}, notice.title), element("p", {}, notice.text))));
}

function showRights() {
    const isAllowed = permission.allowed === true;
    byId("rights").hidden = permission.allowed !== false;
    byId("retune").disabled = !isAllowed || status === null || !status.agent;
    byId("settings").querySelector("fieldset").disabled = !isAllowed;
}

function followPolicy() {
    byId("engage").disabled = byId("policy").value === "ksmtuned";
}

function announceGuests(count) {
    if (guestsShown !== null && guestsShown !== count)
        setText(byId("announcer"), count === 1 ? "1 guest runs" : `${count} guests run`);
    guestsShown = count;
}

/* --- acting ------------------------------------------------------------------------------------------------------ */

/* Do one thing at a time, show its result, and refresh. Nothing is disabled meanwhile: focus stays. */
async function act(work) {
    if (isActing)
        return;
    isActing = true;
    try {
        showResult("success", await work());
    } catch (trouble) {
        showResult("danger", trouble instanceof Problem ? trouble.message : String(trouble));
    }
    isActing = false;
    await refresh();
}

function showResult(level, text) {
    const result = byId("result");
    result.className = `notice ${level}`;
    result.hidden = false;
    setText(result.querySelector("p"), text);
    setText(byId("announcer"), text);
}

async function retune() {
    const { pass } = await askToAct({ op: "retune", uri: status.uri, dry_run: false });
    if (pass.refused.length)
        throw new Problem(FAILED, pass.refused.map(one => one.message).join("; "));
    return `Pass made (${OUTCOMES[pass.outcome] || pass.outcome}): ${pass.decision.reason}`;
}

async function apply() {
    try {
        return await applySettings(byId("policy").value, byId("engage").value);
    } finally {
        await showSettings();
    }
}

/* --- beginning --------------------------------------------------------------------------------------------------- */

byId("retune").addEventListener("click", () => act(retune));
byId("examine").addEventListener("click", examine);
byId("policy").addEventListener("change", followPolicy);
byId("settings").addEventListener("submit", event => {
    event.preventDefault();
    act(apply);
});
byId("span").addEventListener("change", () => {
    curvesDueMs = 0;
    refresh();
});
byId("result").querySelector("button").addEventListener("click", () => { byId("result").hidden = true });
permission.addEventListener("changed", showRights);
cockpit.addEventListener("visibilitychange", () => cockpit.hidden || refresh());
window.setInterval(() => cockpit.hidden || refresh(), REFRESH_MS);
refresh().then(examine);
showSettings();
