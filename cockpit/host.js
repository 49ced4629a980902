/* The libvirt connection for the commands: the unit's, as systemd has it from root's files.

   Never the agent's word: the commands run as root, the agent does not, and libvirt runs a program that a URI names. */

import { FAILED, Problem } from "./agent.js";

const ASK = ["systemctl", "show", "--property=Environment", "virtksm.service"];
const NAME = "LIBVIRT_DEFAULT_URI=";
const URI = /^[a-z][a-z0-9+.-]*:[\w\-.~:/?#[\]@!&()*+,;=%]*$/i;

let asked = null;

/* Return the unit's URI, null where it names none or systemd does not tell: the commands' own default then. Raises
   Problem. */
export function unitsUri() {
    asked = asked || cockpit.spawn(ASK, { err: "ignore" }).then(parseUri, () => null);
    return asked;
}

/* Take the URI out of what systemctl prints: Environment=NAME=VALUE "NAME=VALUE WITH BLANKS" ... */
export function parseUri(output) {
    const words = output.trim().replace(/^Environment=/, "").split(/\s+/).map(word => word.replace(/^"|"$/g, ""));
    const uri = words.filter(word => word.startsWith(NAME)).map(word => word.slice(NAME.length)).pop();
    if (uri && !URI.test(uri))
        throw new Problem(FAILED, `virtksm.service has a ${NAME.slice(0, -1)} that is no URI: see systemctl cat virtksm`);
    return uri || null;
}
