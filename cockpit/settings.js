/* The policy and when it engages: shown to all, changed by root, in a drop-in that is this page's own.

   Nothing is lost: a file that this page did not write is left alone, and what the configuration's check or the agent
   turns down is put back. */

import { FAILED, NO_AGENT, Problem, askToAct, run, runJson } from "./agent.js";

export const FILE = "/etc/virtksm/conf.d/80-cockpit.toml";
const HEADING = "# Written by the KSM page of Cockpit, which replaces it whole.\n";
const OURS = /^# Written by .*\npolicy = "[a-z]+"\n\n\[adaptive\]\nengage = "[a-z]+"\n$/;

/* Return what is configured: `policy` and `engage`, each with its `value`, the file it comes from (`origin`), the
   `choices` and their `meaning`. */
export async function readSettings() {
    const shown = await runJson("config", "show");
    return { policy: shown.policy, engage: shown["adaptive.engage"] };
}

/* Configure both, have the agent read it, and return a sentence on what came of it; raises Problem. */
export async function applySettings(policy, engage) {
    const file = cockpit.file(FILE, { superuser: "require", max_read_size: 65536 });
    try {
        const before = await readOurs(file);
        await replace(file, textOf(policy, engage), before.tag);
        try {
            await run(["config", "check"], "require");
            return await settle(policy, engage);
        } catch (problem) {
            await putBack(file, before.text, problem);
            throw problem;
        }
    } finally {
        file.close();
    }
}

function textOf(policy, engage) {
    return `${HEADING}policy = "${policy}"\n\n[adaptive]\nengage = "${engage}"\n`;
}

function readOurs(file) {
    return new Promise((resolve, reject) => {
        file.read()
                .then((text, tag) => {
                    if (text === null || OURS.test(text))
                        resolve({ text, tag });
                    else
                        reject(new Problem(FAILED, `${FILE} was edited by hand and is left as it is: ` +
                                                   "change it there, or give it another name"));
                })
                .catch(error => reject(new Problem(FAILED, `${FILE} cannot be read: ${error.message}`)));
    });
}

function replace(file, text, tag) {
    return new Promise((resolve, reject) => {
        file.replace(text, tag)
                .then(resolve)
                .catch(error => reject(new Problem(FAILED, error.problem === "change-conflict"
                    ? `${FILE} was changed meanwhile: try again`
                    : `${FILE} cannot be written: ${error.message}`)));
    });
}

/* Put the former file back (null: there was none), and have the agent read that, should it have read the other one. */
async function putBack(file, text, problem) {
    try {
        await replace(file, text, undefined);
    } catch (other) {
        throw new Problem(FAILED, `${problem.message}; and it could not be put back: ${other.message}`);
    }
    try {
        await askToAct({ op: "reload" });
    } catch {
        // The problem that is being answered for, or one that was there before.
    }
}

async function settle(policy, engage) {
    const inForce = await readSettings();
    const overruled = Object.entries({ policy, engage }).find(([name, value]) => inForce[name].value !== value);
    if (overruled)
        throw new Problem(FAILED, `${inForce[overruled[0]].origin} comes later and sets ${overruled[0]} to ` +
                                  `${inForce[overruled[0]].value}: change it there; nothing was changed`);
    try {
        const answer = await askToAct({ op: "reload" });
        if (answer.policy !== policy)
            throw new Problem(FAILED, `the agent goes on with policy ${answer.policy}: ` +
                                      "it reads another configuration (--config?); nothing was changed");
    } catch (problem) {
        if (problem.kind === NO_AGENT)
            return "Saved. No agent runs: it will hold once one does.";
        throw problem;
    }
    return "Saved, and the agent follows it.";
}
