/* Asks the agent at its sockets, and runs virtksm's commands, as root where Cockpit may, else as the user who is logged in.

   The protocol is virtksm/agent/control_client.py's: one JSON line there, one back. Every failure becomes a Problem
   whose `kind` decides the remedy. */

const CONTROL_SOCKET = "/run/virtksm/agent/control.sock";
const STATUS_SOCKET = "/run/virtksm/agent/status.sock";
const MAX_ANSWER = 1 << 20;
const READ_WITHIN_MS = 10000;
const ACT_WITHIN_MS = 60000;

export const NO_AGENT = "no-agent";
export const DENIED = "access-denied";
export const NOT_INSTALLED = "not-installed";
export const FAILED = "failed";

/* An agent's socket speaks of KiB, a command of bytes (docs/reference.md): the page has bytes alone. */
export function inBytes(value) {
    if (value === null || typeof value !== "object")
        return value;
    if (Array.isArray(value))
        return value.map(inBytes);
    return Object.fromEntries(Object.entries(value).map(([name, one]) => name.endsWith("_kib")
        ? [name.replace(/_kib$/, "_bytes"), one === null ? null : 1024 * one]
        : [name, inBytes(one)]));
}

export class Problem extends Error {
    constructor(kind, message) {
        super(message);
        this.kind = kind;
    }
}

/* Query as any reader may (`status`, `history`, `decisions`): at the control socket, or where that is closed at the
   status socket. */
export async function askToRead(request) {
    try {
        return await askAt(CONTROL_SOCKET, request, "try", READ_WITHIN_MS);
    } catch (problem) {
        if (problem.kind !== DENIED)
            throw problem;
    }
    try {
        return await askAt(STATUS_SOCKET, request, "try", READ_WITHIN_MS);
    } catch (problem) {
        throw problem.kind === NO_AGENT ? new Problem(DENIED, "there is no status_group") : problem;
    }
}

/* Have the agent do something (`retune`, `reload`), which root alone may. */
export function askToAct(request) {
    return askAt(CONTROL_SOCKET, request, "require", ACT_WITHIN_MS);
}

function askAt(path, request, superuser, withinMs) {
    return new Promise((resolve, reject) => {
        const channel = cockpit.channel({ payload: "stream", unix: path, superuser });
        const timer = window.setTimeout(() => channel.close("timeout"), withinMs);
        let received = "";
        channel.addEventListener("message", (_event, data) => {
            received += data;
            if (received.length > MAX_ANSWER)
                channel.close("too-large");
        });
        channel.addEventListener("close", (_event, options) => {
            window.clearTimeout(timer);
            try {
                resolve(parseAnswer(received, options));
            } catch (problem) {
                reject(problem);
            }
        });
        channel.send(JSON.stringify(request) + "\n");
    });
}

function parseAnswer(text, closed) {
    if (!text.endsWith("\n"))
        throw socketProblem(closed);
    let answer;
    try {
        answer = JSON.parse(text);
    } catch {
        throw new Problem(FAILED, "the agent's answer is no JSON: are virtksm and this page of the same version?");
    }
    if (answer && answer.ok)
        return answer;
    if (answer && answer.other_uri)
        throw new Problem(FAILED, `the agent serves ${answer.other_uri} by now`);
    throw new Problem(FAILED, answer && answer.error
        ? [answer.error, answer.remedy].filter(Boolean).join(": ")
        : "the agent answers nothing of use");
}

/* Cockpit's bridge in Python (since 297) tells in its message alone that a socket is closed to this user. */
function socketProblem({ problem, message }) {
    if (problem === "access-denied" || problem === "authentication-failed" || /^\[Errno 13\]/.test(message))
        return new Problem(DENIED, "you may not ask the agent");
    if (problem === "not-found" || problem === "terminated")
        return new Problem(NO_AGENT, "no agent runs");
    if (problem === "timeout")
        return new Problem(FAILED, "the agent does not answer: see `systemctl status virtksm`");
    return new Problem(FAILED, `the agent's answer broke off (${problem || "it closed the connection"})`);
}

/* Run a virtksm command and return what it prints. */
export function run(args, superuser = "try") {
    return spawnVirtksm(args, superuser).then(([output, failure]) => {
        if (failure)
            throw failure;
        return output;
    });
}

/* Run a virtksm command with --json; an exit code that only sums up its output is no failure. */
export async function runJson(...args) {
    const [output, failure] = await spawnVirtksm([...args, "--json"], "try");
    try {
        return JSON.parse(output);
    } catch {
        throw failure || new Problem(FAILED, `virtksm ${args[0]} printed no JSON`);
    }
}

function spawnVirtksm(args, superuser) {
    return new Promise(resolve => {
        cockpit.spawn(["virtksm", ...args], { superuser, err: "message" })
                .then(output => resolve([output, null]))
                .catch((error, output) => resolve([output || "", commandProblem(args[0], error)]));
    });
}

function commandProblem(name, error) {
    if (error.problem === "not-found")
        return new Problem(NOT_INSTALLED, "there is no command virtksm on this host");
    if (error.problem === "access-denied")
        return new Problem(DENIED, "administrative access is needed");
    return new Problem(FAILED, inOneLine(error.message || `virtksm ${name} failed`));
}

/* Return a command's errors and hints, a line each, as one text. */
export function inOneLine(errors) {
    return errors.trim().replace(/^virtksm: (error: )?/gm, "").replace(/\nhint: /g, ": ").replace(/\n/g, "; ");
}
